package inventory_test

import (
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/inventory"
	"trow/storage"
)

func d(name string) digest.Digest { return digest.FromString(name) }

func held(name string, subject digest.Digest, tags []string, refs ...string) storage.HeldManifest {
	m := storage.HeldManifest{Digest: d(name), Size: 1, Subject: subject}
	for _, r := range refs {
		m.Refs = append(m.Refs, d(r))
	}
	for _, t := range tags {
		m.Tags = append(m.Tags, storage.HeldTag{Name: t})
	}
	return m
}

// repo holds two indexes that share the platform amd, of which one has a signature; the signature has one too.
func repo() storage.Holdings {
	return storage.Holdings{Repo: "app",
		Manifests: []storage.HeldManifest{held("i1", "", []string{"1", "stable"}, "amd", "arm"),
			held("i2", "", []string{"2"}, "amd"), held("amd", "", nil, "base", "x"),
			held("arm", "", []string{"arm"}, "base", "y"),
			held("sig", d("i1"), nil, "s"), held("sigsig", d("sig"), nil, "t")},
		Blobs: []storage.HeldBlob{{Digest: d("base"), Size: 100}, {Digest: d("x"), Size: 10},
			{Digest: d("y"), Size: 20},
			{Digest: d("s"), Size: 3}, {Digest: d("t"), Size: 4}, {Digest: d("unused"), Size: 1000}}}
}

func TestRemovalTakesWhatNothingElseNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		target inventory.Target
		goes   []string // manifests, in this order
		tags   int
		kept   int
		bytes  int64
	}{
		"a tag alone":                     {inventory.Target{Tag: "2"}, nil, 1, 1, 0},
		"a tag with a manifest":           {inventory.Target{Tag: "2", WithManifest: true}, []string{"i2"}, 1, 0, 1},
		"a manifest that another tag has": {inventory.Target{Tag: "1", WithManifest: true}, nil, 1, 1, 0},
		"an index: its tagged platform and the shared one stay": {inventory.Target{Digest: d("i1")},
			[]string{"i1", "sig", "sigsig"}, 2, 0, 1 + 1 + 1 + 3 + 4},
		"a part of an index": {inventory.Target{Digest: d("arm")}, nil, 0, 1, 0},
		"everything": {inventory.Target{}, []string{"i1", "i2", "amd", "arm", "sig", "sigsig"}, 4, 0,
			6 + 100 + 10 + 20 + 3 + 4 + 1000},
	} {
		t.Run(name, func(t *testing.T) {
			r, found := inventory.Plan(repo(), test.target)
			var goes, want []digest.Digest
			for _, m := range r.Manifests {
				goes = append(goes, m.Digest)
			}
			for _, name := range test.goes {
				want = append(want, d(name))
			}
			if !found || !slices.Equal(goes, want) || len(r.Tags) != test.tags || len(r.Kept) != test.kept ||
				r.Bytes != test.bytes {
				t.Errorf("found %v, %d manifests, tags %v, kept %v, %d bytes", found, len(goes), r.Tags,
					r.Kept, r.Bytes)
			}
		})
	}
	if _, found := inventory.Plan(repo(), inventory.Target{Tag: "none"}); found {
		t.Error("a tag that does not exist was found")
	}
}

func TestWhatAnotherRepositoryHoldsDoesNotBecomeFree(t *testing.T) {
	r, _ := inventory.Plan(repo(), inventory.Target{})
	all := r.Bytes
	r.HeldBy(repo()) // itself
	r.HeldBy(storage.Holdings{Repo: "other", Blobs: []storage.HeldBlob{{Digest: d("base"), Size: 100}},
		Manifests: []storage.HeldManifest{held("amd", "", nil)}})
	if r.Bytes != all-100-1 {
		t.Errorf("%d bytes of %d", r.Bytes, all)
	}
}

func TestSharedContentIsCountedOnce(t *testing.T) {
	var s inventory.Sum
	s.Add(repo())
	s.Add(storage.Holdings{Repo: "other",
		Blobs:     []storage.HeldBlob{{Digest: d("base"), Size: 100}, {Digest: d("z"), Size: 7}},
		Manifests: []storage.HeldManifest{held("m", "", []string{"v"}, "base", "z")}})
	usages, total := s.Result()
	want := inventory.Total{Repositories: 2, Bytes: 6 + 1137 + 7 + 1, Shared: 100}
	if total != want || usages[0].Own != 6+1037 || usages[0].Unused != 1000 || usages[0].Tags != 4 ||
		usages[1].Bytes != 108 || usages[1].Own != 8 {
		t.Errorf("total %+v, want %+v; %+v", total, want, usages)
	}
	if n := inventory.Sizes(repo())(d("i1")); n != 3+100+10+20 {
		t.Errorf("the index has %d bytes", n)
	}
}
