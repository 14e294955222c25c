package tls

import (
	"fmt"

	"trow/storage/files"
)

// source is a group of files that other programs write, and what the Keeper makes of their content: the user's pair, or
// the client CAs.
type source struct {
	cert     Cert
	what     string   // for errors
	paths    []string // those that are empty count as empty files
	apply    func(contents [][]byte) error
	follower *files.Follower // used by Open, and then by Run alone
}

// used reports whether there are files.
func (s *source) used() bool {
	for _, path := range s.paths {
		if path != "" {
			return true
		}
	}
	return false
}

// open reads the files for the first time. Errors name the file.
func (s *source) open() error {
	contents := make([][]byte, len(s.paths))
	for i, path := range s.paths {
		if path == "" {
			continue
		}
		b, err := files.Read(path, files.MaxSize)
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		contents[i] = b
	}
	s.follower = files.NewFollower(s.paths, contents)
	return s.apply(contents)
}

// poll applies the content of the files if it has changed. On an error the previous content stays in use.
func (s *source) poll() (changed bool, err error) {
	contents, changed, err := s.follower.Poll()
	if changed && err == nil {
		err = s.apply(contents)
	}
	return changed, err
}
