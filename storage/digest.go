package storage

import (
	_ "crypto/sha256" // go-digest computes the algorithms that are linked in
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// key is a digest in binary form: a byte for the algorithm and the raw sum. As a string it is a map key that takes half
// the memory of the textual form, and the name of a fact in the journal.
type key string

// The algorithm bytes are part of the data format.
const (
	algSHA256 = 1
	algSHA512 = 2
)

// The lengths of keys: that of a sha256, and the longest, that of a sha512.
const (
	shortKey = 1 + 32
	maxKey   = 1 + 64
)

// sum is a key that holds its bytes in itself, so that a look-up can return it without allocating. The zero value is
// not a digest.
type sum [maxKey]byte

func sumOf(k key) (s sum) {
	copy(s[:], k)
	return s
}

func (s sum) key() key {
	switch s[0] {
	case algSHA256:
		return key(s[:shortKey])
	case algSHA512:
		return key(s[:])
	}
	return ""
}

// Supported reports whether content may be addressed by the algorithm: sha256 and sha512, which the OCI image spec
// registers and go-digest computes.
func Supported(alg digest.Algorithm) bool {
	return slices.Contains([]digest.Algorithm{digest.SHA256, digest.SHA512}, alg)
}

// ParseDigest checks the form of a digest: a supported algorithm, a colon, and as many lower-case hex digits as the
// algorithm has. Errors: ErrDigest.
func ParseDigest(s string) (digest.Digest, error) {
	var buf [maxKey]byte
	if appendKey(buf[:0], s) == nil {
		return "", fmt.Errorf("%w: %.150q: want sha256:<64 hex digits> or sha512:<128 hex digits>", ErrDigest, s)
	}
	return digest.Digest(s), nil
}

// appendKey appends the binary form of a digest to buf; it returns nil if the digest is malformed. With room for maxKey
// bytes in buf it allocates nothing.
func appendKey(buf []byte, s string) []byte {
	const prefix = len("sha256:")
	if len(s) < prefix {
		return nil
	}
	var alg byte
	switch {
	case s[:prefix] == "sha256:" && len(s) == prefix+64:
		alg = algSHA256
	case s[:prefix] == "sha512:" && len(s) == prefix+128:
		alg = algSHA512
	default:
		return nil
	}
	buf = append(buf, alg)
	for i := prefix; i < len(s); i += 2 {
		hi, lo := nibble(s[i]), nibble(s[i+1])
		if hi > 15 || lo > 15 {
			return nil
		}
		buf = append(buf, hi<<4|lo)
	}
	return buf
}

// nibble returns the value of a lower-case hex digit, and 255 for any other character. The hex package accepts upper
// case, which a digest must not have.
func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// keyOf returns the binary form of a digest, and an empty key, which no map contains, for a malformed one.
func keyOf(d digest.Digest) key { return key(appendKey(make([]byte, 0, maxKey), string(d))) }

// digest returns the textual form.
func (k key) digest() digest.Digest { return sumOf(k).digest() }

func (s sum) digest() digest.Digest {
	var room [len(digest.SHA512) + 1 + 2*maxKey]byte
	return digest.Digest(s.appendDigest(room[:0]))
}

// appendDigest appends the textual form, and nothing for the zero value.
func (s *sum) appendDigest(b []byte) []byte {
	switch s[0] {
	case algSHA256:
		return hex.AppendEncode(append(b, digest.SHA256+":"...), s[1:shortKey])
	case algSHA512:
		return hex.AppendEncode(append(b, digest.SHA512+":"...), s[1:])
	}
	return b
}

// valid reports whether k has the form that appendKey makes.
func (k key) valid() bool { return validKey(k) }

func validKey[K ~string | ~[]byte](k K) bool {
	return len(k) == shortKey && k[0] == algSHA256 || len(k) == maxKey && k[0] == algSHA512
}
