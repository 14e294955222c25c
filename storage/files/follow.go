package files

import (
	"context"
	"strings"
	"time"
)

const (
	// PollInterval is the time between two looks at a file that may change. A change is acted upon after the second look
	// that finds it, at most twice this time after it was made.
	PollInterval = 5 * time.Second
	// MaxSize bounds the files that people write and that we follow: 1 MiB holds the htpasswd lines of 10,000 users.
	MaxSize = 1 << 20
)

// Follower notices that the content of some files, which belong together, has changed. It compares content, so it does
// not matter how a file was replaced: written over, renamed, or by swapping the symbolic link to its directory, as
// Kubernetes does. Not safe for concurrent use.
type Follower struct {
	paths []string
	last  string // what the last poll found
	acted string // what was last returned
}

// NewFollower makes a Follower for files that held these contents when the caller read them. Files with an empty path
// count as empty.
func NewFollower(paths []string, seen [][]byte) *Follower {
	now := key(seen, nil)
	return &Follower{paths: paths, last: now, acted: now}
}

// Poll reads the files. changed reports whether they have new content, the same at two polls in a row; then contents
// holds it, or err says why a file cannot be read. The same content or error is reported once.
func (f *Follower) Poll() (contents [][]byte, changed bool, err error) {
	contents = make([][]byte, len(f.paths))
	for i, p := range f.paths {
		if p == "" {
			continue
		}
		if contents[i], err = Read(p, MaxSize); err != nil {
			break
		}
	}
	now := key(contents, err)
	stable := now == f.last
	f.last = now
	if now == f.acted || !stable {
		return nil, false, nil
	}
	f.acted = now
	return contents, true, err
}

// key identifies contents or an error by one string that can be compared.
func key(contents [][]byte, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	var b strings.Builder
	for _, c := range contents {
		b.WriteByte(0) // separates the files; it is in none of the text files that we follow
		b.Write(c)
	}
	return b.String()
}

// Follow calls apply with the new content whenever the file changes from seen, and report with the outcome, nil for
// success, until ctx is done.
func Follow(ctx context.Context, path string, seen []byte, apply func(content []byte) error, report func(error)) {
	f := NewFollower([]string{path}, [][]byte{seen})
	t := time.NewTicker(PollInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		contents, changed, err := f.Poll()
		if !changed {
			continue
		}
		if err == nil {
			err = apply(contents[0])
		}
		report(err)
	}
}
