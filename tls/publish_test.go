package tls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	trowtls "trow/tls"
)

func TestSettings(t *testing.T) {
	for args, want := range map[string]string{
		"":                           "<nil>",
		"--no-tls":                   "<nil>",
		"--tls-cert=a --client-ca=b": "<nil>",
		"--tls-names=a,b":            "<nil>",
		"--no-tls --tls-cert=a":      "no-tls conflicts with tls-cert and tls-key",
		"--no-tls --tls-key=a":       "no-tls conflicts with tls-cert and tls-key",
		"--no-tls --client-ca=a":     "no-tls conflicts with client-ca",
		"--no-tls --validate-client-ca=a": "no-tls conflicts with client-ca and validate-client-ca: a client can " +
			"present a certificate only over TLS",
		"--ca-overlap=9s":  "ca-overlap: 9s is too short; want at least 10s",
		"--ca-overlap=10s": "<nil>",
	} {
		var o trowtls.Options
		fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		o.AddFlags(fs)
		if err := fs.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(o.Validate()); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

func TestTheLeafHasTheExtraNames(t *testing.T) {
	o := trowtls.Options{Names: []string{"localhost", "trow.kube-public.svc", "a.example:31000"},
		ExtraNames: []string{"b.example"}}
	leaf := shown(t, open(t, t.TempDir(), o), "")
	for _, name := range []string{"localhost", "trow.kube-public.svc", "a.example", "b.example"} {
		if !slices.Contains(leaf.DNSNames, name) {
			t.Errorf("%s is missing in %v", name, leaf.DNSNames)
		}
	}
}

// TestOpenWaitsForTheStore, and logs each error once.
func TestOpenWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, log := &shared{err: errors.New("no answer")}, new(events)
		o := trowtls.Options{Names: wanted, Wait: true, Log: zerolog.New(log)}
		opened := make(chan error)
		go func() {
			_, err := trowtls.Open(t.Context(), store, o)
			opened <- err
		}()
		expect := func(want string) {
			t.Helper()
			time.Sleep(10*time.Second + time.Millisecond)
			synctest.Wait()
			list := log.take()
			if len(list) != 1 || list[0].Message != "waiting for the certificates" ||
				list[0].Level != "warn" || !strings.Contains(list[0].Error, want) {
				t.Errorf("the log is %+v", list)
			}
		}
		expect("no answer")
		store.fail(errors.New("another"))
		expect("another")
		store.fail(nil)
		if err := <-opened; err != nil {
			t.Errorf("when the store is back: %v", err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		store.fail(errors.New("no answer"))
		if _, err := trowtls.Open(ctx, store, o); err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("when ctx is done: %v", err)
		}
		o.Names = []string{"a b"}
		if _, err := trowtls.Open(t.Context(), store, o); err == nil || !strings.Contains(err.Error(), `"a b"`) {
			t.Errorf("with an invalid name: %v", err)
		}
	})
}

// TestTheCAFileFollowsTheBundle: it is written by Open and at each step of a rotation.
func TestTheCAFileFollowsTheBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(file, []byte("of a former CA"), 0o600); err != nil {
			t.Fatal(err)
		}
		k := open(t, t.TempDir(), trowtls.Options{CAFile: file, Poll: time.Second, Overlap: time.Minute})
		same := func(when string, certificates int) {
			t.Helper()
			b := read(t, file)
			if !bytes.Equal(b, k.CA()) || bytes.Count(b, []byte("BEGIN")) != certificates {
				t.Errorf("%s, the file is\n%s", when, b)
			}
		}
		same("at the start", 1)
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		log := run(t, k)
		if err := k.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(2*time.Second, log)
		same("with the new CA published", 2)
		after(2*time.Minute+10*time.Second, log)
		same("at the end", 1)
	})
}

func TestACAFileThatCannotBeWrittenIsLogged(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{CAFile: filepath.Join(t.TempDir(), "missing", "ca.crt")})
	if list := k.log.take(); len(list) != 1 || list[0].Level != "warn" || !strings.Contains(list[0].Error, "missing") {
		t.Errorf("the log is %+v", list)
	}
}

func TestTheCAIsServed(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{})
	w := httptest.NewRecorder()
	k.ServeCA(w, httptest.NewRequest("GET", "/ca.crt", nil))
	contentType := w.Header().Get("Content-Type")
	if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), k.CA()) || contentType != "application/x-pem-file" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestTheEndOfTheLeafIsExported(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{})
	want := fmt.Sprintf("# HELP trow_tls_certificate_not_after_seconds When the server's own certificate expires, in "+
		"Unix time.\n# TYPE trow_tls_certificate_not_after_seconds gauge\n"+
		"trow_tls_certificate_not_after_seconds %g\n", float64(k.NotAfter(trowtls.Leaf).Unix()))
	reg := prometheus.NewRegistry()
	reg.MustRegister(k)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestANilKeeperIsAServerWithoutTLS in everything that the program may call.
func TestANilKeeperIsAServerWithoutTLS(t *testing.T) {
	var k *trowtls.Keeper
	r := httptest.NewRequest("GET", "/ca.crt", nil)
	if k.Config() != nil || k.Certificate(r, trowtls.ForClient) != nil || k.Run(t.Context()) != nil {
		t.Error("it has TLS")
	}
	w := httptest.NewRecorder()
	k.ServeCA(w, r)
	if w.Code != 404 || !strings.Contains(w.Body.String(), "plain HTTP") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(k)
	if n, err := testutil.GatherAndCount(reg); n != 0 || err != nil {
		t.Errorf("%d metrics, %v", n, err)
	}
}
