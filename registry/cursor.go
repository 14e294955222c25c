package registry

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"strings"
)

// cursors seal where a page of the catalog has ended, if that is behind a repository that the client may not see: its
// name must not be in the link to the next page.
type cursors struct{ aead cipher.AEAD }

// cursorMark begins a cursor. No name of a repository has it.
const cursorMark = "~"

// newCursors derives the key of cursors from another one, so that they outlive a restart if that one does.
func newCursors(from []byte) cursors {
	key, err := hkdf.Key(sha256.New, from, nil, "trow: cursors of the catalog", 32)
	if err != nil {
		panic(err) // only for a key that is too long
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another size
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // only for another block size
	}
	return cursors{aead}
}

// seal returns a cursor. All have one length, which would say something about the name as well.
func (c cursors) seal(repo string) string {
	plain := make([]byte, max(maxName, len(repo)))
	copy(plain, repo)
	return cursorMark + strict.EncodeToString(c.aead.Seal(nil, nil, plain, nil))
}

// open returns the name that a list goes on after: that in a cursor, or last itself. Errors: cursorInvalid.
func (c cursors) open(last string) (string, error) {
	text, ok := strings.CutPrefix(last, cursorMark)
	if !ok {
		return last, nil
	}
	sealed, err := strict.DecodeString(text)
	if err != nil {
		return "", cursorInvalid(last)
	}
	plain, err := c.aead.Open(nil, nil, sealed, nil)
	if err != nil {
		return "", cursorInvalid(last)
	}
	return string(bytes.TrimRight(plain, "\x00")), nil
}
