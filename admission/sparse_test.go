package admission_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/admission"
	"trow/storage"
)

// named is a registry that knows the platforms of some manifests.
type named struct {
	*registry
	platforms map[digest.Digest]string
}

func (n named) Platforms(_ digest.Digest, of []digest.Digest) []string {
	names := make([]string, len(of))
	for i, d := range of {
		names[i] = n.platforms[d]
	}
	return names
}

// TestASparseIndexNamesWhatIsMissing: at most three platforms, as many as fit beside the image.
func TestASparseIndexNamesWhatIsMissing(t *testing.T) {
	r := newRegistry(t, held)
	here, all := digest.FromString("here"), []string{"linux/arm64/v8", "linux/s390x", "linux/ppc64le", "linux/riscv64"}
	n := named{r, map[digest.Digest]string{digest.FromString("hostile"): "linux/\x1b[2J", here: "linux/amd64",
		digest.FromString("40"): strings.Repeat("p", 40), digest.FromString("41"): strings.Repeat("p", 41)}}
	long := strings.Repeat("l", 120-len("not here for all of its platforms (missing: linux/arm64/v8, ...): "+host+
		"/:4"))
	sparse := func(repo string, missing ...string) {
		t.Helper()
		index := storage.Manifest{Digest: digest.FromString(fmt.Sprint(missing)), Refs: []digest.Digest{here},
			MediaType: "application/vnd.docker.distribution.manifest.list.v2+json"}
		for _, name := range missing {
			d := digest.FromString(name)
			index.Refs = append(index.Refs, d)
			if slices.Contains(all, name) {
				n.platforms[d] = name
			}
		}
		err := r.Update(t.Context(), repo, func(tx *storage.Tx) error {
			image := storage.Manifest{Digest: here, MediaType: "application/vnd.oci.image.manifest.v1+json"}
			return errors.Join(tx.PutManifest(image), tx.PutManifest(index),
				tx.SetTag(fmt.Sprint(len(missing)), index.Digest))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range all {
		sparse("a", all[:i+1]...)
	}
	sparse("hostile", "hostile")
	sparse("forty", "40")
	sparse("more", "41")
	sparse(long, all...)
	sparse(long+"l", all...)
	sparse(long+strings.Repeat("l", 40), all...)
	for image, want := range map[string]string{
		"a:1": "not here for all of its platforms (missing: linux/arm64/v8): ",
		"a:2": "not here for all of its platforms (missing: linux/arm64/v8, linux/s390x): ",
		"a:3": "not here for all of its platforms (missing: linux/arm64/v8, linux/s390x, linux/ppc64le): ",
		"a:4": "not here for all of its platforms (missing: linux/arm64/v8, linux/s390x, linux/ppc64le, ...): ",
		"hostile:1": "not here for all of its platforms (missing: " +
			digest.FromString("hostile").String()[:len("sha256:")+12] + "): ",
		"forty:1": "not here for all of its platforms (missing: " + strings.Repeat("p", 40) + "): ",
		"more:1": "not here for all of its platforms (missing: " +
			digest.FromString("41").String()[:len("sha256:")+12] + "): ",
		long + ":4":  "not here for all of its platforms (missing: linux/arm64/v8, ...): ",
		long + "l:4": "not here for all of its platforms: ",
	} {
		v := newPolicy(t, admission.PolicyOptions{}).Decide(t.Context(), n, host+"/"+image)
		if got := strings.Join(v.Hints, "; "); !v.Allowed || got != want+host+"/"+image || len(got) > 120 {
			t.Errorf("%s: %v, hints %q (%d), want %q", image, v.Allowed, got, len(got), want)
		}
	}
	v := newPolicy(t, admission.PolicyOptions{}).Decide(t.Context(), n, host+"/"+long+strings.Repeat("l", 40)+":4")
	if len(v.Hints) != 1 || v.Hints[0] != "an image is not here for all of its platforms" {
		t.Errorf("a long name: %q", v.Hints)
	}
}
