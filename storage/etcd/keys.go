package etcd

import (
	"strings"

	"trow/storage"
)

// The layout, below the prefix. Facts, format and head are next to each other, so that one watch delivers them; the
// histories are outside of it. See README.md.
const (
	keyFacts    = "f/"       // repo, a zero byte: its revision; and then kind and name: a fact
	keyFormat   = "format"   // the version of the data format, in decimal
	keyHead     = "head"     // put by every commit: its mod revision is that of the last one
	keyHistory  = "history/" // repo, a zero byte, name: a fact of KindHistory
	keyIdentity = "identity" // of the place
	keyLead     = "lead/"    // the name of a task: who does it, see Lead
	keyWriter   = "writer/"  // the ID of a Journal that is open: the number of its last commit
)

// ranges are those of the above that any keys may follow: no other journal may have its prefix there.
var ranges = []string{keyFacts, keyHistory, keyLead, keyWriter}

// layout makes and reads the keys below a prefix, which ends with a slash.
type layout struct{ prefix string }

func (l layout) format() string          { return l.prefix + keyFormat }
func (l layout) head() string            { return l.prefix + keyHead }
func (l layout) identity() string        { return l.prefix + keyIdentity }
func (l layout) lead(task string) string { return l.prefix + keyLead + task }
func (l layout) writer(id string) string { return l.prefix + keyWriter + id }

// repo is the key of a repo's revision. It comes right before those of the repo's facts.
func (l layout) repo(repo string) string { return l.prefix + keyFacts + repo + "\x00" }

// fact is the key of a fact or of a condition.
func (l layout) fact(repo string, f storage.Fact) string {
	switch f.Kind {
	case storage.KindHistory:
		return l.prefix + keyHistory + repo + "\x00" + f.Name
	case storage.KindLead:
		return l.lead(f.Name)
	}
	return l.repo(repo) + string(f.Kind) + f.Name
}

// facts is the range of the full state: the keys from the first to before the second.
func (l layout) facts() (from, end string) { return l.prefix + keyFacts, after(l.prefix + keyFacts) }

// watched is the range that Watch follows: the facts, the format and the head.
func (l layout) watched() (from, end string) { return l.prefix + keyFacts, l.head() + "\x00" }

// parse reads the key of a fact or, with kind 0, of a repo's revision. It reports whether the key is one.
func (l layout) parse(key []byte) (repo string, kind storage.Kind, name string, ok bool) {
	rest, isFact := strings.CutPrefix(string(key), l.prefix+keyFacts)
	repo, rest, found := strings.Cut(rest, "\x00")
	if !isFact || !found || repo == "" {
		return "", 0, "", false
	}
	if rest == "" {
		return repo, 0, "", true
	}
	return repo, storage.Kind(rest[0]), rest[1:], true
}

// after returns the end of the range of the keys that start with prefix.
func after(prefix string) string {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return string(end[:i+1])
		}
	}
	return "\x00" // etcd's word for the end of all keys
}
