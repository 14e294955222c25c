package files

import (
	"context"
	"strings"
	"time"
)

const (
	// PollInterval is the time between two looks at a file that may change. A change is acted upon after the second
	// look that finds it, at most twice this time after it was made.
	PollInterval = 5 * time.Second
	// MaxSize bounds the files that people write and that we follow: 1 MiB holds the htpasswd lines of 10,000 users.
	MaxSize = 1 << 20
)

// Follower notices that the content of some files, which belong together, has changed. It compares content, so it does
// not matter how a file was replaced: written over, renamed, or by swapping the symbolic link to its directory, as
// Kubernetes does. Not safe for concurrent use.
type Follower struct {
	read  func() ([][]byte, error)
	last  string // what the last poll found
	acted string // what was last returned
}

// NewFollower makes a Follower for files that held these contents when the caller read them. Files with an empty path
// count as empty.
func NewFollower(paths []string, seen [][]byte) *Follower {
	return newFollower(func() ([][]byte, error) { return readEach(paths) }, seen)
}

func newFollower(read func() ([][]byte, error), seen [][]byte) *Follower {
	now := key(seen, nil)
	return &Follower{read: read, last: now, acted: now}
}

// readEach reads files, and stops at the first that cannot be read.
func readEach(paths []string) (contents [][]byte, err error) {
	contents = make([][]byte, len(paths))
	for i, p := range paths {
		if p == "" {
			continue
		}
		if contents[i], err = Read(p, MaxSize); err != nil {
			break
		}
	}
	return contents, err
}

// Poll reads the files. changed reports whether they have new content, the same at two polls in a row; then contents
// holds it, or err says why a file cannot be read. The same content or error is reported once.
func (f *Follower) Poll() (contents [][]byte, changed bool, err error) {
	contents, err = f.read()
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

// settled reports whether the last poll found what was last returned.
func (f *Follower) settled() bool { return f.last == f.acted }

// Follow calls apply with the new content whenever the file changes from seen, and report with the outcome, nil for
// success, until ctx is done. An apply that has failed is repeated at each look: it may depend on more than that,
// such as on files that the content names and that appear later. The same error is reported once.
func Follow(ctx context.Context, path string, seen []byte, apply func(content []byte) error, report func(error)) {
	read := func() ([][]byte, error) { return readEach([]string{path}) }
	FollowFunc(ctx, read, [][]byte{seen}, func(c [][]byte) error { return apply(c[0]) }, report)
}

// FollowFunc is [Follow] for the contents that read returns, which belong together.
func FollowFunc(ctx context.Context, read func() ([][]byte, error), seen [][]byte, apply func([][]byte) error,
	report func(error)) {
	f := newFollower(read, seen)
	var contents [][]byte // those that apply has failed with; nil: there are none
	var failure error     // of that apply
	t := time.NewTicker(PollInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		found, changed, err := f.Poll()
		switch {
		case changed:
			contents = nil
		case contents == nil || !f.settled():
			continue
		default:
			found = contents
		}
		if err == nil {
			if err, contents = apply(found), nil; err != nil {
				contents = found
			}
		}
		if !changed && err != nil && err.Error() == failure.Error() {
			continue
		}
		failure = err
		report(err)
	}
}
