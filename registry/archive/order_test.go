package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/archive"
	"trow/storage"
)

// tagOrder returns the tags of a repository in the order in which they were set.
func (r *target) tagOrder(repo string) (names []string) {
	r.Helper()
	h, _, err := r.index.Holdings(r.Context(), repo)
	if err != nil {
		r.Fatal(err)
	}
	var all []storage.HeldTag
	for _, m := range h.Manifests {
		all = append(all, m.Tags...)
	}
	for _, g := range storage.TagsInOrder(all) {
		if len(g) > 1 {
			r.Errorf("the order of %v is not known", g)
		}
		names = append(names, g[0].Name)
	}
	return names
}

// TestTheOrderOfTagsSurvivesAnArchive: after an export and an import, retention removed the newest tags and kept the
// oldest, because all tags of the archive had one time.
func TestTheOrderOfTagsSurvivesAnArchive(t *testing.T) {
	from := newTarget(t)
	random := rand.New(rand.NewPCG(1, 2))
	for _, i := range random.Perm(30) {
		desc := from.image("app", fmt.Sprintf("t%02d", i), nil, fmt.Append(nil, "layer", i/3))
		path := fmt.Sprintf("/v2/app/manifests/%s?tag=z%d&tag=b%d", desc.Digest, i, i) // several tags in one commit
		from.must("PUT", path, desc.MediaType, from.get("app", desc.Digest.String()))
	}
	want := from.tagOrder("app")
	if len(want) != 90 {
		t.Fatalf("%d tags", len(want))
	}
	dir, stream := t.TempDir(), &bytes.Buffer{}
	if _, err := archive.Export(t.Context(), from.Client, dir, archive.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.ExportTar(t.Context(), from.Client, stream, archive.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	to := newTarget(t)
	if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := to.tagOrder("app"); !slices.Equal(got, want) {
		t.Errorf("a directory: %v, want %v", got, want)
	}
	to = newTarget(t)
	if _, err := archive.ImportTar(t.Context(), to.Client, stream,
		archive.ImportOptions{Temp: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if got := to.tagOrder("app"); !slices.Equal(got, want) {
		t.Errorf("a tar: %v, want %v", got, want)
	}
}

// TestTheOrderOfTagsSurvivesATarInAnotherOrder: content of the first tag comes last, so that it is complete last.
func TestTheOrderOfTagsSurvivesATarInAnotherOrder(t *testing.T) {
	from := newTarget(t)
	for _, tag := range []string{"c", "b", "a", "d"} {
		from.image("app", tag, nil, []byte("layer "+tag))
	}
	stream := &bytes.Buffer{}
	if _, err := archive.ExportTar(t.Context(), from.Client, stream, archive.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	late := "layer c"
	var out, last bytes.Buffer
	w, in := tar.NewWriter(&out), tar.NewReader(stream)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		body, rerr := io.ReadAll(in)
		if err := errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		if string(body) == late {
			last.Write(body)
			continue
		}
		err = w.WriteHeader(h)
		if _, werr := w.Write(body); errors.Join(err, werr) != nil {
			t.Fatal(err, werr)
		}
	}
	name := "blobs/sha256/" + digest.FromString(late).Encoded()
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(last.Len())})
	if _, werr := w.Write(last.Bytes()); errors.Join(err, werr, w.Close()) != nil || last.Len() == 0 {
		t.Fatal(err, werr, last.Len())
	}
	to := newTarget(t)
	if _, err := archive.ImportTar(t.Context(), to.Client, &out, archive.ImportOptions{Temp: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if got := to.tagOrder("app"); !slices.Equal(got, []string{"c", "b", "a", "d"}) {
		t.Errorf("the order is %v", got)
	}
}

// TestAnImportHoldsRetention: before the first push and after the last. A registry that does not know the request is of
// an earlier version.
func TestAnImportHoldsRetention(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	from.image("app", "v", nil, []byte("layer"))
	if _, err := archive.Export(t.Context(), from.Client, dir, archive.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{204, 404, 500} {
		to := newTarget(t)
		held := 0
		hold := func(w http.ResponseWriter) {
			if held++; (held == 1) != (to.requests.Load() == 0) {
				t.Errorf("%d: request %d to hold retention comes after %d others", status, held, to.requests.Load())
			}
			w.WriteHeader(status)
		}
		to.hold.Store(&hold)
		_, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{})
		switch {
		case status == 500 && (err == nil || held != 1 || to.requests.Load() != 0):
			t.Errorf("%d requests, although retention cannot be held: %v", to.requests.Load(), err)
		case status != 500 && (err != nil || held != 2):
			t.Errorf("%d: held %d times, %v", status, held, err)
		}
	}
}
