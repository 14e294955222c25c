package maintenance

import (
	"bytes"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"trow/registry/retention"
	"trow/storage"
)

func TestShares(t *testing.T) {
	for text, want := range map[string]int64{"40%": 400, "1%": 10, "90%": 900, "512": 512, "2Gi": 2 << 30, "0": 0} {
		var s Share
		if err := s.Set(text); err != nil || s.Of(1000) != want || s.String() != text {
			t.Errorf("%s: %d, %v, want %d", text, s.Of(1000), err, want)
		}
	}
	for _, text := range []string{"", "0%", "91%", "-1%", "4.5%", "%", "-1", "much"} {
		s := Share{text: "40%"}
		if err := s.Set(text); err == nil || s.text != "40%" {
			t.Errorf("%q is taken: %+v", text, s)
		}
	}
}

// TestAFullIndexIsReported: once in the log, and as a line of /readyz?verbose.
func TestAFullIndexIsReported(t *testing.T) {
	var log bytes.Buffer
	o := Options{Engines: Engines{DataDir: t.TempDir()}, Log: zerolog.New(&log), MaxTags: 1, MaxRepositories: 1}
	if err := o.MaxIndex.Set("1Mi"); err != nil {
		t.Fatal(err)
	}
	d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	index, err := d.Load(t.Context(), &retention.Policy{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	link := func(repo string) error {
		return index.Update(t.Context(), repo, func(tx *storage.Tx) error {
			tx.Link(digest.FromString("x"), 1)
			return nil
		})
	}
	if err := link("a"); err != nil {
		t.Fatal(err)
	}
	d.watchIndex(t.Context())
	if ok, text := d.IndexCheck(); !ok || !strings.Contains(text, "of 1.0 MiB") || log.Len() > 0 {
		t.Errorf("%v %s; %s", ok, text, &log)
	}
	if err := link("b"); err == nil {
		t.Fatal("a second repository is accepted")
	}
	for range 3 {
		d.watchIndex(t.Context())
	}
	if ok, text := d.IndexCheck(); ok || !strings.Contains(text, "new names are refused (setting max-repositories)") {
		t.Errorf("%v %s", ok, text)
	}
	if n := strings.Count(log.String(), "the index is full"); n != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("logged %d times: %s", n, &log)
	}
}
