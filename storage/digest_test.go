package storage

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestDigestsGoToBinaryFormAndBack(t *testing.T) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for _, s := range []string{"", "a", "b"} {
			d := alg.FromString(s)
			k := keyOf(d)
			if k.digest() != d || !k.valid() || len(k) != 1+alg.Size() {
				t.Errorf("%s became %q and %s", d, k, k.digest())
			}
			if got, err := ParseDigest(string(d)); got != d || err != nil {
				t.Errorf("ParseDigest(%s): %s, %v", d, got, err)
			}
		}
	}
	if key("").digest() != "" || key("").valid() || key("\x01short").valid() {
		t.Error("an empty or short key is accepted as a digest")
	}
}

// TestADigestThatBeginsAsAnotherIsAnotherOne: clients name any digests in manifests, also such that begin with the
// bytes of one that is here. The hash table compares them if their hashes collide.
func TestADigestThatBeginsAsAnotherIsAnotherOne(t *testing.T) {
	short := keyOf(digest.FromString("x"))
	long := key(string(rune(algSHA512)) + string(short[1:]) + strings.Repeat("y", 32))
	other := long[:len(long)-1] + "z"
	if !long.valid() || !other.valid() {
		t.Fatal("the test's digests are not valid")
	}
	for _, here := range []key{short, long} {
		s := newState()
		i := s.intern([]byte(here))
		for _, k := range []key{short, long, other} {
			if got := s.equalDigest(i, []byte(k)); got != (k == here) {
				t.Errorf("%s is %s: %v", here.digest(), k.digest(), got)
			}
		}
	}
}

func TestMalformedDigestsAreRefused(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 8)
	for _, s := range []string{"", "sha256", "sha256:", "sha256:" + hex[:62], "sha256:" + hex[:63],
		"sha256:" + hex[:65],
		"sha256:" + hex, "sha512:" + hex[:64], "sha512:" + hex[:126], "sha512:" + hex + "00", "sha384:" + hex[:96],
		"sha256." + hex[:64], "SHA256:" + hex[:64], "sha512." + hex, "md5abc:" + hex[:64], "md5abc:" + hex} {
		if _, err := ParseDigest(s); !errors.Is(err, ErrDigest) || keyOf(digest.Digest(s)) != "" {
			t.Errorf("ParseDigest(%q): %v", s, err)
		}
	}
	for _, bad := range "/:@G`gAF.\x00\xff" { // beside the hex digits in ASCII, and others
		for i := range 2 { // the upper and the lower half of a byte
			s := []byte("sha256:" + hex[:64])
			s[len("sha256:")+i] = byte(bad)
			if _, err := ParseDigest(string(s)); !errors.Is(err, ErrDigest) {
				t.Errorf("ParseDigest(%q): %v", s, err)
			}
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(string(digest.FromString("x")))
	f.Add(string(digest.SHA512.FromString("x")))
	f.Add("sha256:" + strings.Repeat("A", 64))
	f.Add("sha256:../..")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if (err == nil) != (digest.Digest(s).Validate() == nil && Supported(digest.Digest(s).Algorithm())) {
			t.Errorf("ParseDigest(%q): %v; go-digest says %v", s, err, digest.Digest(s).Validate())
		}
		if err == nil && (string(d) != s || keyOf(d).digest() != d) {
			t.Errorf("ParseDigest(%q): %q", s, d)
		}
		if err != nil && !errors.Is(err, ErrDigest) {
			t.Errorf("ParseDigest(%q): %v is not ErrDigest", s, err)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	m := Manifest{Digest: digest.FromString("m"), MediaType: "application/a", Size: 7, Time: 8,
		Subject: digest.FromString("s"), Refs: []digest.Digest{digest.FromString("a"), digest.SHA512.FromString("b")}}
	f.Add(manifestValue(m))
	f.Add([]byte{})
	f.Add([]byte{2, 2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, v []byte) {
		got, err := parseManifest(v)
		if err != nil {
			return
		}
		if got.count > len(v) {
			t.Errorf("a value of %d bytes has %d references", len(v), got.count)
		}
		n := 0
		if err := got.eachRef(func(k []byte) {
			if n++; !key(k).valid() {
				t.Errorf("reference %q", k)
			}
		}); err == nil && n != got.count {
			t.Errorf("%d references of %d", n, got.count)
		}
	})
}

func TestManifestValuesAreReadAsWritten(t *testing.T) {
	for _, m := range []Manifest{
		{},
		{MediaType: "application/a", Size: 1 << 40, Time: -5, Subject: digest.FromString("s")},
		{Refs: []digest.Digest{digest.FromString("a"), digest.SHA512.FromString("b"), digest.FromString("a")}},
	} {
		f, err := parseManifest(append(manifestValue(m), "what a later version adds"...))
		if err != nil || f.size != m.Size || f.time != m.Time || string(f.mediaType) != m.MediaType ||
			key(f.subject).digest() != m.Subject {
			t.Errorf("%+v was read as %+v, %v", m, f, err)
		}
		var refs []digest.Digest
		if err := f.eachRef(func(k []byte) {
			refs = append(refs, key(k).digest())
		}); err != nil || len(refs) != len(m.Refs) {
			t.Errorf("references %v, %v; want %v", refs, err, m.Refs)
		}
	}
}
