package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
)

func TestParseURL(t *testing.T) {
	for url, want := range map[string]Options{
		"etcd://127.0.0.1:2379":           {Endpoints: []string{"127.0.0.1:2379"}},
		"etcd://a:1,b:2,[::1]:3/trow/one": {Endpoints: []string{"a:1", "b:2", "[::1]:3"}, Prefix: "trow/one"},
		"etcds://a.example:2379/x%20y/":   {Endpoints: []string{"a.example:2379"}, Prefix: "x y/", TLS: true},
	} {
		got, err := ParseURL(url)
		if err != nil || !slices.Equal(got.Endpoints, want.Endpoints) || got.Prefix != want.Prefix ||
			got.TLS != want.TLS {
			t.Errorf("ParseURL(%q) = %+v, %v; want %+v", url, got, err, want)
		}
	}
	for _, url := range []string{"", "http://a:1/x", "etcd:a:1", "etcd://", "etcd:///x", "etcd://a", "etcd://a:0",
		"etcd://a:b", "etcd://a:1,", "etcd://a:1/x?y=z", "etcd://a:1/x#y", "etcd://a:1/%zz",
		"etcd://a:1/" + strings.Repeat("x", 64),
		"etcd://a:99999", "etcd://a b:1", "etcd://a:1/%00"} {
		if o, err := ParseURL(url); err == nil || !strings.Contains(err.Error(), "etcd://") {
			t.Errorf("ParseURL(%q) = %+v, %v; want an error that shows the form", url, o, err)
		}
	}
	for _, url := range []string{"etcd://root:secret@a:1/x", "etcd://a:1,root:secret@b:2", "etcd://a:1/root:secret@x",
		"etcd://root:sec/ret@a:1"} {
		if _, err := ParseURL(url); err == nil || strings.Contains(err.Error(), "sec") ||
			!strings.Contains(err.Error(), "credentials") {
			t.Errorf("ParseURL(%q): %v; want an error about credentials that does not show them", url, err)
		}
	}
}

func TestKeys(t *testing.T) {
	l := layout{"trow/"}
	from, end := l.facts()
	watched, watchedEnd := l.watched()
	in := func(key, from, end string) bool { return key >= from && key < end }
	for _, f := range []storage.Fact{{Kind: 'b', Name: "\x01\x00\xff"}, {Kind: 't', Name: ""},
		{Kind: 't', Name: "\x00"},
		{Kind: 'q', Name: "\xff\xff"}} {
		for _, repo := range []string{"a", "a/b", "_", "_/a", "\xff"} {
			key := l.fact(repo, f)
			gotRepo, kind, name, ok := l.parse([]byte(key))
			if !ok || gotRepo != repo || kind != f.Kind || name != f.Name {
				t.Errorf("%q is read as %q %q %q", key, gotRepo, kind, name)
			}
			if !in(key, from, end) || !in(key, watched, watchedEnd) || key <= l.repo(repo) ||
				!strings.HasPrefix(key, l.repo(repo)) {
				t.Errorf("%q is not where it should be", key)
			}
		}
	}
	if repo, kind, _, ok := l.parse([]byte(l.repo("a"))); repo != "a" || kind != 0 || !ok {
		t.Errorf("the revision of a is read as %q %q", repo, kind)
	}
	if !in(l.head(), watched, watchedEnd) || in(l.head(), from, end) {
		t.Error("the head is not where it should be")
	}
	for _, key := range []string{l.identity(), l.lead("x"), l.writer("x"), "other/f/a\x00", "trow/f/", "trow/f/a",
		"trow/f/\x00", l.fact("a", storage.Fact{Kind: storage.KindHistory, Name: "x\x000"}),
		l.fact("a", storage.Fact{Kind: storage.KindLead})} {
		if _, _, _, ok := l.parse([]byte(key)); ok {
			t.Errorf("%q is taken for a fact", key)
		}
	}
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "\xff": "\x00", "a\x00": "a\x01"} {
		if got := after(prefix); got != want {
			t.Errorf("after(%q) = %q, want %q", prefix, got, want)
		}
	}
}

// TestUpdate: the changes of one revision are one Update, whose batches are as they were committed.
func TestUpdate(t *testing.T) {
	l := layout{"p/"}
	put := func(key, value string) *clientv3.Event {
		kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: 7}
		if value != "" {
			kv.Value = []byte(value)
		}
		return &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv}
	}
	del := func(key string) *clientv3.Event {
		return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: 7}}
	}
	u := l.update([]*clientv3.Event{put(l.repo("a"), ""), put(l.repo("a")+"tz", "1"), del(l.repo("a") + "ta"),
		put(l.repo("b")+"bx", ""), del(l.repo("c")), put(l.head(), "x")})
	want := "[{a 0 false false [] [{t z [49]} {t a []}]} {b 0 true false [] [{b x []}]} {c 0 false true [] []}]"
	for i := range u.Batches {
		for k, f := range u.Batches[i].Facts {
			if (f.Value == nil) != (u.Batches[i].Repo == "a" && k == 1) {
				t.Errorf("the value of %q is %v", f.Name, f.Value)
			}
		}
	}
	if got := strings.NewReplacer("98", "b", "116", "t").
		Replace(fmt.Sprint(u.Batches)); got != want || u.Revision != 7 {
		t.Errorf("the update is\n%s\nwant\n%s", got, want)
	}
}

// TestNoJournalLiesWithinAnother: whatever the prefixes, keys of one are in no range that another one reads.
func TestNoJournalLiesWithinAnother(t *testing.T) {
	outer := layout{"trow/"}
	keys := func(l layout) []string {
		return []string{l.repo("r"), l.fact("r", storage.Fact{Kind: storage.KindTag, Name: "t"}),
			l.fact("r", storage.Fact{Kind: storage.KindHistory, Name: "t"}), l.format(), l.head(), l.identity(),
			l.lead("task"), l.writer("id")}
	}
	refused := 0
	for _, key := range keys(outer) {
		name, _, _ := strings.Cut(strings.TrimPrefix(key, outer.prefix), "/")
		for _, inner := range []string{"trow/" + name, "trow/" + name + "/x", "trow/" + name + "x", "trow" + name} {
			cleaned, err := cleanPrefix(inner)
			if err != nil {
				refused++
				continue
			}
			for _, at := range ranges {
				for _, k := range keys(layout{cleaned}) {
					if strings.HasPrefix(k, outer.prefix+at) {
						t.Errorf("a journal at %s may have the key %q", inner, k)
					}
				}
			}
		}
	}
	if refused != 10 { // the five keys with a slash, and what is below
		t.Errorf("%d prefixes are refused", refused)
	}
	if _, err := ParseURL("etcd://a:1/trow/f"); err == nil || !strings.Contains(err.Error(), "among the keys") {
		t.Errorf("trow/f: %v", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	j := &Journal{keys: layout{"trow/"}, options: Options{Endpoints: []string{"a:1"}}}
	for want, err := range map[string]error{
		"etcdctl alarm disarm":           rpctypes.ErrNoSpace,
		"readwrite trow/":                rpctypes.ErrPermissionDenied,
		"check the user and the file":    rpctypes.ErrAuthFailed,
		"set the user":                   rpctypes.ErrUserEmpty,
		"--max-txn-ops":                  rpctypes.ErrTooManyOps,
		"--max-request-bytes":            rpctypes.ErrRequestTooLarge,
		"no answer in time":              context.DeadlineExceeded,
		"--auto-compaction-retention=1h": rpctypes.ErrCompacted,
	} {
		got := j.explain(fmt.Errorf("wrapped: %w", err))
		if !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), "etcd at a:1") ||
			!errors.Is(got, err) {
			t.Errorf("%v is explained as %v", err, got)
		}
		if errors.Is(got, storage.ErrFull) != errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("%v is ErrFull: %v", err, errors.Is(got, storage.ErrFull))
		}
	}
}

// TestAMoveIsNoticed: what answers say of the head is compared with what was seen before the request.
func TestAMoveIsNoticed(t *testing.T) {
	head := func(rev int64, mark string) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{ModRevision: rev, Value: []byte(mark)}
	}
	for name, tt := range map[string]struct {
		cluster uint64
		head    *mvccpb.KeyValue
		moved   bool
	}{
		"the same":               {1, head(5, "a"), false},
		"a later one":            {1, head(6, "b"), false},
		"an earlier one":         {1, head(4, "0"), true},
		"none":                   {1, nil, true},
		"another of that number": {1, head(5, "b"), true},
		"of another cluster":     {2, head(6, "b"), true},
	} {
		j := &Journal{place: newPlace(), ctx: t.Context()}
		if err := j.note(j.current(), 1, head(5, "a")); err != nil {
			t.Fatal(err)
		}
		before := j.current()
		err := j.note(before, tt.cluster, tt.head)
		if errors.Is(err, errMoved) != tt.moved {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, storage.ErrRestored) != tt.moved {
			t.Errorf("%s: it is not said that the data is older: %v", name, err)
		}
		if unusable := j.usable() != nil; unusable != tt.moved {
			t.Errorf("%s: unusable: %v", name, unusable)
		}
		if !tt.moved {
			continue
		}
		<-before.moved
		// Whichever request has noticed it, each Watch that was under way says it, and each later full state.
		for range 2 {
			if err := j.movedSince(before); !errors.Is(err, storage.ErrRestored) {
				t.Errorf("%s: a Watch ends with %v", name, err)
			}
		}
		if now := j.current(); now.restored != 1 || j.movedSince(now) != nil {
			t.Errorf("%s: restored %d times; a later Watch ends with %v", name, now.restored, j.movedSince(now))
		}
		if err := j.note(before, 1, head(9, "z")); !errors.Is(err, errMoved) {
			t.Errorf("%s: an answer from before: %v", name, err)
		}
		if j.setLoaded(j.current().moves); j.usable() != nil {
			t.Errorf("%s: after the load: %v", name, j.usable())
		}
	}
	// An answer that was overtaken by a later one is no move.
	j := &Journal{place: newPlace(), ctx: t.Context()}
	before := j.current()
	err := errors.Join(j.note(before, 1, head(6, "b")), j.note(before, 1, head(5, "a")))
	if err != nil || j.current().head != 6 {
		t.Errorf("%v; the head is %d", err, j.current().head)
	}
}

func TestHedgedRequests(t *testing.T) {
	j := &Journal{options: Options{RequestTimeout: time.Minute}, ctx: t.Context()}
	stuck := make(chan struct{}, 1)
	stuck <- struct{}{}
	r, copies, err := hedged(t.Context(), j, func(ctx context.Context) (string, error) {
		select {
		case <-stuck: // the first one
			<-ctx.Done()
			return "", ctx.Err()
		default:
			return "second", nil
		}
	})
	if r != "second" || copies < 2 || err != nil {
		t.Errorf("%q after %d copies, %v", r, copies, err)
	}
	broken := errors.New("broken")
	_, copies, err = hedged(t.Context(), j, func(context.Context) (int, error) { return 0, broken })
	if copies != 1 || !errors.Is(err, broken) {
		t.Errorf("%v after %d copies", err, copies)
	}
}

func TestPagesFitTheirSize(t *testing.T) {
	kvs := func(n, size int) []*mvccpb.KeyValue {
		return slices.Repeat([]*mvccpb.KeyValue{{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), size)}}, n)
	}
	for want, last := range map[int64][]*mvccpb.KeyValue{
		maxPage: kvs(1000, 1), 100: kvs(10, 1<<20), 16760: kvs(1000, 1000),
	} {
		if got := nextLimit(last); got != want {
			t.Errorf("the next page has %d keys, want %d", got, want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := write("bad", "no PEM")
	for want, o := range map[string]Options{
		"without TLS":               {CAFile: bad},
		"has no PEM certificate":    {TLS: true, CAFile: bad},
		"both files":                {TLS: true, CertFile: bad},
		"the client certificate":    {TLS: true, CertFile: bad, KeyFile: bad},
		"is empty":                  {User: "u", PasswordFile: write("empty", "\n")},
		`the password of the user`:  {User: "u", PasswordFile: filepath.Join(dir, "none")},
		"longer than 63 bytes":      {Prefix: strings.Repeat("x", 64)},
		"there is no endpoint":      {},
		"the CA of etcd: stat /non": {TLS: true, CAFile: "/none"},
	} {
		if want != "there is no endpoint" {
			o.Endpoints = []string{"a:1"}
		}
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", o, err, want)
		}
	}
}
