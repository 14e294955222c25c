package tls_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	trowtls "trow/tls"
)

// TestAReinstallOnAnOldVolume: a new store, such as the Secret of a new installation, gets the CA whose key the volume
// has; where only the old bundle is left, the log says that clients have to trust a new one.
func TestAReinstallOnAnOldVolume(t *testing.T) {
	volume := t.TempDir()
	if err := os.Mkdir(filepath.Join(volume, "tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	first := open(t, filepath.Join(volume, "tls"), trowtls.Options{})
	const another = "was served with another CA before"

	again := open(t, t.TempDir(), trowtls.Options{Dir: volume})
	if !bytes.Equal(first.CA(), again.CA()) || says(again, another) {
		t.Errorf("the CA of the volume is not used again: %v", again.log.list)
	}
	bundle, err := os.ReadFile(filepath.Join(volume, "ca.crt"))
	if err != nil || !bytes.Equal(bundle, first.CA()) {
		t.Errorf("the bundle on the volume: %v", err)
	}

	if err := os.RemoveAll(filepath.Join(volume, "tls")); err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	lost := open(t, store, trowtls.Options{Dir: volume})
	if bytes.Equal(first.CA(), lost.CA()) || !says(lost, another) {
		t.Errorf("the log does not say that the CA is another one: %v", lost.log.list)
	}
	if kept := open(t, store, trowtls.Options{Dir: volume}); says(kept, another) {
		t.Errorf("a restart: %v", kept.log.list)
	}
}

// says reports whether the log has a line with this text.
func says(k keeper, text string) bool {
	k.log.mu.Lock()
	defer k.log.mu.Unlock()
	return slices.ContainsFunc(k.log.list, func(e event) bool { return strings.Contains(e.Message, text) })
}
