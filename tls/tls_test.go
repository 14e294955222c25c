package tls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	trowtls "trow/tls"
)

// wanted contains every form of name.
var wanted = []string{
	"trow.kube-public:31000", "trow.kube-public.svc", "trow.kube-public.svc.cluster.local", "trow", "localhost",
	"127.0.0.1", "127.0.0.1:31000", "::1", "[::1]", "[fd00::7]:31000", "TROW.example.org.", "*.apps.example.org",
}

// openDir opens the pairs in a directory.
func openDir(dir string, o trowtls.Options) (*trowtls.Keeper, error) {
	store, err := trowtls.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return trowtls.Open(context.Background(), store, o)
}

// keeper is a Keeper and what it has logged.
type keeper struct {
	*trowtls.Keeper
	log *events
}

func open(t *testing.T, dir string, o trowtls.Options) keeper {
	t.Helper()
	store, err := trowtls.OpenDir(dir)
	if err != nil {
		t.Fatalf("OpenDir: %v", err)
	}
	return openStore(t, store, o)
}

func openStore(t *testing.T, store trowtls.Store, o trowtls.Options) keeper {
	t.Helper()
	if o.Names == nil {
		o.Names = wanted
	}
	log := new(events)
	o.Log = zerolog.New(log)
	k, err := trowtls.Open(t.Context(), store, o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return keeper{k, log}
}

// handshake connects a client to k over loopback and returns the certificate that it was shown. (A net.Pipe has
// no buffer: a client that rejects the certificate would wait for a server that is still writing.)
func handshake(k keeper, client *tls.Config) (*x509.Certificate, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			tls.Server(c, k.Config()).Handshake()
			c.Close()
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		<-done
		return nil, err
	}
	c.Close()
	<-done
	return c.ConnectionState().PeerCertificates[0], nil
}

// shown returns the certificate that k presents for an SNI, without verifying it.
func shown(t *testing.T, k keeper, sni string) *x509.Certificate {
	t.Helper()
	c, err := handshake(k, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("handshake for %q: %v", sni, err)
	}
	return c
}

func pool(pem []byte) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p
}

func TestEveryWantedNameIsVerifiedByTheCA(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{})
	for _, name := range []string{
		"trow.kube-public", "trow.kube-public.svc", "trow.kube-public.svc.cluster.local", "trow", "localhost",
		"127.0.0.1", "::1", "fd00::7", "trow.example.org", "x.apps.example.org",
	} {
		if _, err := handshake(k, &tls.Config{ServerName: name, RootCAs: pool(k.CA())}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := handshake(k, &tls.Config{ServerName: "else.example.org", RootCAs: pool(k.CA())}); err == nil {
		t.Error("a name that is not in the Options is verified")
	}
}

func TestTLS11IsRefused(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{})
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	_, err := handshake(k, old)
	if err == nil {
		t.Error("TLS 1.1 is accepted")
	}
}

func TestTheCAMaySignLeavesAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, trowtls.Options{})
	if bytes.Contains(k.CA(), []byte("PRIVATE")) {
		t.Fatal("CA() contains the key")
	}
	block, _ := pem.Decode(k.CA())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero || ca.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("CA: IsCA %v, path length %d, usage %b", ca.IsCA, ca.MaxPathLen, ca.KeyUsage)
	}
	if !regexp.MustCompile(`^Trow CA [0-9a-f]{8}$`).MatchString(ca.Subject.CommonName) {
		t.Errorf("common name %q", ca.Subject.CommonName)
	}
	if !regexp.MustCompile(`^([0-9A-F]{2}:){31}[0-9A-F]{2}$`).MatchString(k.Fingerprint()) {
		t.Errorf("fingerprint %q", k.Fingerprint())
	}
	leaf := shown(t, k, "")
	if leaf.IsCA || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("leaf: IsCA %v, usage %v", leaf.IsCA, leaf.ExtKeyUsage)
	}
}

func TestBadNamesAreRefusedByName(t *testing.T) {
	for _, name := range []string{
		"", ":31000", "a..b", "-a.b", "a-.b", "a b", "*", "*.", "a.*.b", "bücher.example", "fe80::1%eth0",
		"127.0.0.300",
		"http://trow", strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 127) + "b",
	} {
		_, err := openDir(t.TempDir(), trowtls.Options{Names: []string{"good", name}})
		if err == nil || !strings.Contains(err.Error(), `"`+name+`"`) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := openDir(t.TempDir(), trowtls.Options{}); err == nil {
		t.Error("no names at all are accepted")
	}
}

func TestARestartKeepsCAAndLeaf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "tls")
	a := open(t, dir, trowtls.Options{})
	swapped := append(append([]string{"localhost"}, wanted[4:]...), wanted[:4]...)
	b := open(t, dir, trowtls.Options{Names: swapped})
	if a.Fingerprint() != b.Fingerprint() || !bytes.Equal(a.CA(), b.CA()) {
		t.Error("another CA after a restart")
	}
	if !shown(t, a, "").Equal(shown(t, b, "")) {
		t.Error("another leaf after a restart with the same names in another order")
	}
}

func TestOtherNamesMakeANewLeafOfTheSameCA(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, trowtls.Options{})
	b := open(t, dir, trowtls.Options{Names: []string{"other.example.org"}})
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("another CA")
	}
	if _, err := handshake(b, &tls.Config{ServerName: "other.example.org", RootCAs: pool(a.CA())}); err != nil {
		t.Error(err)
	}
	if _, err := handshake(b, &tls.Config{ServerName: "localhost", RootCAs: pool(a.CA())}); err == nil {
		t.Error("the leaf still has a name that is no longer in the Options")
	}
}

func TestFilesAreForTheOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	for range 2 { // the second time after the modes were widened
		open(t, dir, trowtls.Options{})
		for path, want := range map[string]os.FileMode{dir: 0o700, dir + "/ca.pem": 0o600, dir + "/leaf.pem": 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
			os.Chmod(path, want|0o055)
		}
	}
}

func TestWhatACrashLeftIsSwept(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, trowtls.Options{})
	left := filepath.Join(dir, ".tmp-123")
	os.WriteFile(left, []byte("-----BEGIN CERT"), 0o600)
	b := open(t, dir, trowtls.Options{})
	if _, err := os.Stat(left); err == nil {
		t.Error("the temporary file is still there")
	}
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("another CA")
	}
}

// TestACADamagedAnywhereIsAnErrorAndStays cuts the CA's file at every 16th byte, and replaces it in other ways.
func TestACADamagedAnywhereIsAnErrorAndStays(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	open(t, dir, trowtls.Options{})
	open(t, other, trowtls.Options{})
	file := filepath.Join(dir, "ca.pem")
	good, foreign, leaf := read(t, file), read(t, filepath.Join(other, "ca.pem")),
		read(t, filepath.Join(dir, "leaf.pem"))
	cert, _ := pem.Decode(good)
	_, key := pem.Decode(foreign)
	bad := map[string][]byte{
		"a leaf": leaf, "a foreign key": append(pem.EncodeToMemory(cert), key...), "too long": make([]byte, 1<<20+1),
	}
	for i := 0; i < len(good)-1; i += 16 {
		bad["cut at "+big.NewInt(int64(i)).String()] = good[:i]
	}
	for name, content := range bad {
		os.WriteFile(file, content, 0o600)
		_, err := openDir(dir, trowtls.Options{Names: wanted})
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(read(t, file), content) {
			t.Fatalf("%s: the file was changed", name)
		}
	}
}

func TestALeafThatDoesNotServeIsReplaced(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	a := open(t, dir, trowtls.Options{})
	open(t, other, trowtls.Options{})
	file := filepath.Join(dir, "leaf.pem")
	good := read(t, file)
	for name, content := range map[string][]byte{
		"cut": good[:len(good)/2], "empty": nil, "of another CA": read(t, filepath.Join(other, "leaf.pem")),
	} {
		os.WriteFile(file, content, 0o600)
		b := open(t, dir, trowtls.Options{})
		if _, err := handshake(b, &tls.Config{ServerName: "localhost", RootCAs: pool(a.CA())}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADirectoryThatCannotBeUsedIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if _, err := openDir(file, trowtls.Options{Names: wanted}); err == nil {
		t.Error("a file is accepted as a directory")
	}
	for _, name := range []string{"ca.pem", "leaf.pem", ".tmp-x/y"} {
		dir := t.TempDir()
		os.MkdirAll(filepath.Join(dir, name), 0o700)
		if _, err := openDir(dir, trowtls.Options{Names: wanted}); err == nil {
			t.Errorf("%s is a directory, and that is no error", name)
		}
	}
}

// userPair makes a pair that our CA has not signed, and writes it to files in dir.
func userPair(t *testing.T, dir string, end time.Time, names ...string) trowtls.Options {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{DNSNames: names, NotBefore: end.Add(-9999 * time.Hour), NotAfter: end}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, _ := x509.MarshalPKCS8PrivateKey(key)
	o := trowtls.Options{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	os.WriteFile(o.CertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600)
	os.WriteFile(o.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	return o
}

func TestTheUsersPairIsServedForItsNamesAndOursForTheRest(t *testing.T) {
	o := userPair(t, t.TempDir(), time.Now().Add(time.Hour),
		"registry.example.org", "*.example.net", "trow.kube-public.svc")
	k := open(t, t.TempDir(), o)
	for sni, users := range map[string]bool{
		"registry.example.org": true, "REGISTRY.example.org": true, "a.example.net": true, "a.b.example.net": false,
		"": false, "trow.kube-public": false, "localhost": false, "trow.kube-public.svc": false, "127.0.0.1": false,
	} {
		if got := shown(t, k, sni).Subject.CommonName == ""; got != users {
			t.Errorf("SNI %q: the user's %v, want %v", sni, got, users)
		}
	}
}

func TestOneFileMayHoldTheUsersPair(t *testing.T) {
	o := userPair(t, t.TempDir(), time.Now().Add(time.Hour), "registry.example.org")
	both := append(read(t, o.CertFile), read(t, o.KeyFile)...)
	os.WriteFile(o.CertFile, both, 0o600)
	k := open(t, t.TempDir(), trowtls.Options{CertFile: o.CertFile})
	if shown(t, k, "registry.example.org").Subject.CommonName != "" {
		t.Error("the user's pair is not served")
	}
}

func TestABadUsersPairIsAnErrorThatNamesTheFile(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(o *trowtls.Options)
		want  string
	}{
		"no certificate": {func(o *trowtls.Options) { os.Remove(o.CertFile) }, "tls.crt: no such file"},
		"no key":         {func(o *trowtls.Options) { os.Remove(o.KeyFile) }, "tls.key: no such file"},
		"not PEM": {func(o *trowtls.Options) {
			os.WriteFile(o.CertFile, []byte("x"), 0o600)
		}, "tls.crt with key"},
		"key without cert": {func(o *trowtls.Options) { o.CertFile = "" }, "without a certificate"},
		"cert without key": {func(o *trowtls.Options) { o.KeyFile = "" }, "tls.crt"},
		"a directory":      {func(o *trowtls.Options) { o.CertFile = filepath.Dir(o.CertFile) }, "not a regular file"},
		"another key": {func(o *trowtls.Options) {
			o.KeyFile = userPair(t, t.TempDir(), time.Now(), "a").KeyFile
		}, "does not match"},
		"names nothing":      {func(o *trowtls.Options) { *o = userPair(t, t.TempDir(), time.Now()) }, "names no host"},
		"a file of one byte": {func(o *trowtls.Options) { os.WriteFile(o.KeyFile, []byte("x"), 0o600) }, "tls.key"},
	} {
		t.Run(name, func(t *testing.T) {
			o := userPair(t, t.TempDir(), time.Now().Add(time.Hour), "registry.example.org")
			c.spoil(&o)
			o.Names = wanted
			if _, err := openDir(t.TempDir(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// event is a line in the log.
type event struct {
	Level, Message     string
	Certificate, Event string
	Until              time.Time
	Error              string
}

func (e event) String() string { return e.Event + " " + e.Certificate }

// events is a log: the events since the last [events.take].
type events struct {
	mu   sync.Mutex
	list []event
}

// Write takes a line of the log.
func (e *events) Write(line []byte) (int, error) {
	var one event
	if err := json.Unmarshal(line, &one); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, one)
	return len(line), nil
}

// run starts k.Run within a synctest bubble, and returns its log.
func run(t *testing.T, k keeper) *events {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return k.log
}

func (e *events) take() []event {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}

// after waits for d and returns the events since it was called last as text, and the first of them.
func (e *events) after(d time.Duration) (all string, first event) {
	time.Sleep(d)
	synctest.Wait()
	var texts []string
	for i, event := range e.take() {
		if i == 0 {
			first = event
		}
		texts = append(texts, event.String())
	}
	return strings.Join(texts, ", "), first
}

// after waits for d and returns the events since then as text.
func after(d time.Duration, e *events) string {
	all, _ := e.after(d)
	return all
}

const day = 24 * time.Hour

func TestTheLeafIsRenewedAtTwoThirdsOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t, t.TempDir(), trowtls.Options{Poll: 15 * time.Minute})
		before, end := shown(t, k, ""), k.NotAfter(trowtls.Leaf)
		events := run(t, k)
		if got := after(59*day, events); got != "" {
			t.Fatalf("after 59 days: %s", got)
		}
		if got := after(2*day, events); got != "renewed leaf" {
			t.Fatalf("after 61 days: %q", got)
		}
		if shown(t, k, "").Equal(before) || !k.NotAfter(trowtls.Leaf).After(end.Add(59*day)) {
			t.Error("the old leaf is still served")
		}
		if _, err := handshake(k, &tls.Config{ServerName: "localhost", RootCAs: pool(k.CA()),
			Time: time.Now}); err != nil {
			t.Error(err)
		}
	})
}

func TestAnOldLeafIsRenewedAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		before := shown(t, open(t, dir, trowtls.Options{}), "")
		time.Sleep(70 * day)
		if shown(t, open(t, dir, trowtls.Options{}), "").Equal(before) {
			t.Error("a leaf past two thirds of its life is kept")
		}
	})
}

func TestARenewalThatFailsIsLoggedAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "tls")
		k := open(t, dir, trowtls.Options{Poll: 15 * time.Minute})
		before := shown(t, k, "")
		os.Rename(dir, dir+"-away")
		events := run(t, k)
		got, e := events.after(60*day + time.Hour + 30*time.Minute)
		if got != "failed leaf, failed leaf" {
			t.Fatalf("without a directory: %q", got)
		}
		if !strings.Contains(e.Error, "no such file") || !e.Until.Equal(before.NotAfter) || e.Level != "warn" ||
			e.Message != "certificate" {
			t.Errorf("event %+v", e)
		}
		if !shown(t, k, "").Equal(before) {
			t.Error("the old leaf is not served")
		}
		os.Rename(dir+"-away", dir)
		if got := after(time.Hour, events); got != "renewed leaf" {
			t.Errorf("with the directory: %q", got)
		}
	})
}

// TestTheCAIsRotatedInItsLastYear: automatically, with an overlap on both sides, and clients with the bundle of the day
// before can always connect.
func TestTheCAIsRotatedInItsLastYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, trowtls.Options{})
		time.Sleep(9*365*day - 12*time.Hour)
		k := open(t, dir, trowtls.Options{Poll: time.Hour})
		first := k.CA()
		events := run(t, k)
		if got := after(6*time.Hour, events); got != "" {
			t.Errorf("before the last year: %q", got)
		}
		for i, want := range []string{"published ca", "renewed ca, renewed leaf", "retired ca", ""} {
			trusted := k.CA()
			if got := after(24*time.Hour, events); got != want {
				t.Errorf("day %d of the last year: %q, want %q", i+1, got, want)
			}
			if _, err := handshake(k, &tls.Config{ServerName: "localhost", RootCAs: pool(trusted),
				Time: time.Now}); err != nil {
				t.Errorf("day %d, with the bundle of the day before: %v", i+1, err)
			}
		}
		if bytes.Contains(k.CA(), first) || bytes.Count(k.CA(), []byte("BEGIN")) != 1 {
			t.Errorf("the old CA is still in the bundle:\n%s", k.CA())
		}
	})
}

func TestARotationIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var published atomic.Bool
		k := open(t, dir, trowtls.Options{Poll: time.Second, Overlap: time.Minute, Published: func(b []byte) bool {
			if bytes.Count(b, []byte("BEGIN")) != 2 {
				t.Errorf("Published is called with\n%s", b)
			}
			return published.Load()
		}})
		before, one := shown(t, k, ""), k.Fingerprint()
		events := run(t, k)
		for range 2 { // the second changes nothing
			if err := k.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := after(3*time.Second, events); got != "published ca" {
			t.Errorf("at once: %q", got)
		}
		if got := after(time.Hour, events); got != "" || !shown(t, k, "").Equal(before) {
			t.Errorf("before the new CA has reached the clients: %q", got)
		}
		published.Store(true)
		if got := after(3*time.Second, events); got != "renewed ca, renewed leaf" || k.Fingerprint() == one {
			t.Errorf("then: %q", got)
		}
		again := open(t, dir, trowtls.Options{}) // as after a restart between the steps
		if !bytes.Equal(again.CA(), k.CA()) || bytes.Count(k.CA(), []byte("BEGIN")) != 2 ||
			!shown(t, again, "").Equal(shown(t, k, "")) {
			t.Error("a restart forgets the step")
		}
		if got := after(2*time.Minute, events); got != "retired ca" {
			t.Errorf("at last: %q", got)
		}
	})
}

func TestACAThatHasEndedIsAnErrorWithARemedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir, trowtls.Options{})
		time.Sleep(11 * 365 * day)
		_, err := openDir(dir, trowtls.Options{Names: wanted})
		if err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("with a CA that has ended: %v", err)
		}
	})
}

// TestTheLastLeafEndsWithItsCA while the rotation waits. It is not renewed, because a new one would end no later.
func TestTheLastLeafEndsWithItsCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t, t.TempDir(), trowtls.Options{Poll: day, Published: func([]byte) bool { return false }})
		events := run(t, k)
		after(10*365*day-15*day, events)
		if !k.NotAfter(trowtls.Leaf).Equal(k.NotAfter(trowtls.CA)) {
			t.Error("the last leaf does not end with its CA")
		}
		if got := after(10*day, events); strings.Contains(got, "leaf") {
			t.Errorf("the last leaf is renewed: %q", got)
		}
	})
}

// shared is a store for several processes: each save makes a new version.
type shared struct {
	mu      sync.Mutex
	files   map[string][]byte
	version int
	saves   int
	err     error
}

func (s *shared) String() string { return "shared" }

// fail makes the store return err, nil for none.
func (s *shared) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *shared) Load(context.Context) (map[string][]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.files), strconv.Itoa(s.version), s.err
}

func (s *shared) Save(_ context.Context, files map[string][]byte, version string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || version != strconv.Itoa(s.version) {
		return false, s.err
	}
	s.files, s.version, s.saves = maps.Clone(files), s.version+1, s.saves+1
	return true, nil
}

// TestProcessesThatStartTogetherAgree: on one CA and one leaf, and on what a rotation makes of them.
func TestProcessesThatStartTogetherAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(shared)
		keepers := make([]keeper, 8)
		var wg sync.WaitGroup
		for i := range keepers {
			wg.Go(func() {
				o := trowtls.Options{Names: wanted, Poll: time.Second, Overlap: time.Minute}
				k, err := trowtls.Open(t.Context(), store, o)
				if err != nil {
					t.Error(err)
				}
				keepers[i] = keeper{k, new(events)}
			})
		}
		wg.Wait()
		agree := func(when string) {
			t.Helper()
			for _, k := range keepers {
				if !bytes.Equal(k.CA(), keepers[0].CA()) || !shown(t, k, "").Equal(shown(t, keepers[0], "")) {
					t.Errorf("%s: they disagree", when)
				}
			}
		}
		agree("at the start")
		if store.saves != 1 {
			t.Errorf("%d saves", store.saves)
		}
		for _, k := range keepers {
			run(t, k)
		}
		if err := keepers[3].Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			time.Sleep(2500 * time.Millisecond)
			synctest.Wait()
			agree("during a rotation")
		}
		if store.saves != 4 {
			t.Errorf("%d saves with a rotation's three", store.saves)
		}
	})
}

// TestAProcessThatCouldNotReadTheStoreFollowsAtTheNextPoll: otherwise it would serve a leaf of a CA that the others
// have retired meanwhile.
func TestAProcessThatCouldNotReadTheStoreFollowsAtTheNextPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(shared)
		o := trowtls.Options{Poll: time.Second, Overlap: time.Minute}
		leader, follower := openStore(t, store, o), openStore(t, store, o)
		events := run(t, follower)
		if err := leader.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := after(3*time.Second, events); got != "published ca" {
			t.Fatalf("after the first step: %q", got)
		}
		store.fail(errors.New("cut off"))
		if got := after(2*time.Minute, events); got != "failed ca" {
			t.Errorf("while it is cut off: %q", got)
		}
		store.fail(nil)
		if err := leader.Refresh(t.Context()); err != nil { // the second step is due
			t.Fatal(err)
		}
		if got := after(3*time.Second, events); got != "renewed ca, renewed leaf" ||
			!bytes.Equal(follower.CA(), leader.CA()) || !shown(t, follower, "").Equal(shown(t, leader, "")) {
			t.Errorf("when it can read the store again: %q", got)
		}
	})
}

// TestRefreshTakesOverWhatAnotherProcessHasSaved at once, not at the next poll.
func TestRefreshTakesOverWhatAnotherProcessHasSaved(t *testing.T) {
	store := new(shared)
	one, two := openStore(t, store, trowtls.Options{}), openStore(t, store, trowtls.Options{})
	if err := one.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(one.CA(), two.CA()) {
		t.Fatal("the rotation changed nothing")
	}
	if err := two.Refresh(t.Context()); err != nil || !bytes.Equal(one.CA(), two.CA()) {
		t.Errorf("%v, or another bundle", err)
	}
	store.fail(errors.New("down"))
	if err := two.Refresh(t.Context()); err == nil {
		t.Error("an error of the store is dropped")
	}
}

// TestProcessesWithOneCAHaveTheSameKeys, each purpose another one, and other CAs others.
func TestProcessesWithOneCAHaveTheSameKeys(t *testing.T) {
	store := new(shared)
	key := func(k keeper, purpose string) string {
		t.Helper()
		b, err := k.Key(purpose)
		if err != nil || len(b) != 32 {
			t.Fatalf("%x, %v", b, err)
		}
		return string(b)
	}
	one, two := openStore(t, store, trowtls.Options{}), openStore(t, store, trowtls.Options{})
	other := openStore(t, new(shared), trowtls.Options{})
	if key(one, "a") != key(two, "a") || key(one, "a") == key(one, "b") || key(one, "a") == key(other, "a") {
		t.Error("the keys do not fit together")
	}
	if b, err := (*trowtls.Keeper)(nil).Key("a"); err == nil {
		t.Errorf("without TLS: %x", b)
	}
}

// TestAStoreThatWasEmptiedIsFilledAgain: clients trust the CA that is served.
func TestAStoreThatWasEmptiedIsFilledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(shared)
		k := openStore(t, store, trowtls.Options{Poll: time.Second})
		kept, ca := maps.Clone(store.files), k.CA()
		store.files = nil
		events := run(t, k)
		if got := after(3*time.Second, events); got != "" || !bytes.Equal(store.files["ca.pem"], kept["ca.pem"]) ||
			!bytes.Equal(k.CA(), ca) {
			t.Errorf("events %q, the store has %d files", got, len(store.files))
		}
	})
}

// TestProcessesWithDifferentNamesKeepTheirLeaves, as during an upgrade that changes the names.
func TestProcessesWithDifferentNamesKeepTheirLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(shared)
		for _, names := range [][]string{{"one.test"}, {"two.test"}} {
			run(t, openStore(t, store, trowtls.Options{Names: names, Poll: time.Second}))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if store.saves != 2 {
			t.Errorf("%d saves in an hour", store.saves)
		}
	})
}

func TestALeafFromTheFutureIsReplaced(t *testing.T) {
	dir := t.TempDir()
	before := shown(t, open(t, dir, trowtls.Options{}), "")
	ca := read(t, filepath.Join(dir, "ca.pem"))
	synctest.Test(t, func(t *testing.T) { // in the year 2000
		_, err := openDir(dir, trowtls.Options{Names: wanted})
		if err == nil || !strings.Contains(err.Error(), "valid from") {
			t.Errorf("with a clock before the CA's start: %v", err)
		}
	})
	if !bytes.Equal(ca, read(t, filepath.Join(dir, "ca.pem"))) ||
		!shown(t, open(t, dir, trowtls.Options{}), "").Equal(before) {
		t.Error("a wrong clock changed the pairs")
	}
}

func TestTheUsersFilesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := t.TempDir()
		o := userPair(t, files, time.Now().Add(40*day), "registry.example.org")
		o.Poll = 20 * time.Second // there are days of them
		cert := read(t, o.CertFile)
		k := open(t, t.TempDir(), o)
		events := run(t, k)
		if got := after(day, events); got != "" {
			t.Fatalf("nothing changed: %q", got)
		}

		before := shown(t, k, "registry.example.org")
		userPair(t, files, time.Now().Add(80*day), "registry.example.org", "second.example.org")
		if got := after(time.Minute, events); got != "reloaded user" {
			t.Fatalf("a new pair: %q", got)
		}
		if shown(t, k, "second.example.org").Equal(before) || shown(t, k, "second.example.org").
			Subject.CommonName != "" {
			t.Error("the new pair is not served")
		}
		if want := time.Now().Add(79 * day); k.NotAfter(trowtls.User).Before(want) {
			t.Errorf("NotAfter %v, want after %v", k.NotAfter(trowtls.User), want)
		}

		good := read(t, o.CertFile)
		os.WriteFile(o.CertFile, cert, 0o600)
		got, e := events.after(day)
		if got != "rejected user" {
			t.Fatalf("a pair that does not match: %q", got)
		}
		if !strings.Contains(e.Error, "tls.crt") {
			t.Errorf("the event does not name the file: %v", e.Error)
		}
		shown(t, k, "second.example.org")
		os.Remove(o.CertFile)
		if got := after(day, events); got != "rejected user" {
			t.Fatalf("a file that is gone: %q", got)
		}
		os.WriteFile(o.CertFile, good, 0o600)
		if got := after(day, events); got != "reloaded user" {
			t.Fatalf("the good one again: %q", got)
		}
	})
}

// TestAHalfWrittenPairIsNotRejected: certificate and key are written one after the other, with a poll between.
func TestAHalfWrittenPairIsNotRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := t.TempDir()
		o := userPair(t, files, time.Now().Add(40*day), "registry.example.org")
		n := userPair(t, t.TempDir(), time.Now().Add(40*day), "registry.example.org")
		o.Poll = time.Minute
		events := run(t, open(t, t.TempDir(), o))
		time.Sleep(30 * time.Second)
		os.WriteFile(o.CertFile, read(t, n.CertFile), 0o600)
		time.Sleep(time.Minute)
		os.WriteFile(o.KeyFile, read(t, n.KeyFile), 0o600)
		if got := after(time.Hour, events); got != "reloaded user" {
			t.Errorf("got %q", got)
		}
	})
}

// TestASecretsLinkIsFollowed swaps the symbolic link to the directory, as the kubelet does.
func TestASecretsLinkIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mount := t.TempDir()
		for _, version := range []string{"..1", "..2"} {
			os.Mkdir(filepath.Join(mount, version), 0o700)
			userPair(t, filepath.Join(mount, version), time.Now().Add(40*day), "registry.example.org")
		}
		os.Symlink("..1", filepath.Join(mount, "..data"))
		o := trowtls.Options{CertFile: filepath.Join(mount, "tls.crt"), KeyFile: filepath.Join(mount, "tls.key")}
		os.Symlink("..data/tls.crt", o.CertFile)
		os.Symlink("..data/tls.key", o.KeyFile)
		events := run(t, open(t, t.TempDir(), o))
		synctest.Wait()
		os.Symlink("..2", filepath.Join(mount, "..tmp"))
		os.Rename(filepath.Join(mount, "..tmp"), filepath.Join(mount, "..data"))
		if got := after(time.Minute, events); got != "reloaded user" {
			t.Errorf("got %q", got)
		}
	})
}

func TestAnExpiredUsersPairIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := userPair(t, t.TempDir(), time.Now().Add(-time.Hour), "registry.example.org")
		o.Poll = time.Minute // there are days of them
		k := open(t, t.TempDir(), o)
		events := run(t, k)
		if got := after(time.Hour, events); got != "ending user" {
			t.Errorf("got %q", got)
		}
		if got := after(2*day, events); got != "ending user, ending user" {
			t.Errorf("two days later: %q", got)
		}
		if shown(t, k, "registry.example.org").Subject.CommonName != "" {
			t.Error("it is not served")
		}
	})
}

func TestAReloadDropsNoConnection(t *testing.T) {
	files := t.TempDir()
	o := userPair(t, files, time.Now().Add(time.Hour), "registry.example.org")
	o.Poll = time.Millisecond
	k := open(t, t.TempDir(), o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go k.Run(ctx)

	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	}))
	s.TLS = k.Config()
	s.StartTLS()
	defer s.Close()
	client := &tls.Config{ServerName: "registry.example.org", InsecureSkipVerify: true}
	transport := &http.Transport{TLSClientConfig: client}
	defer transport.CloseIdleConnections()
	get := func() (string, *x509.Certificate) {
		resp, err := (&http.Client{Transport: transport}).Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b), resp.TLS.PeerCertificates[0]
	}
	addr, cert := get()
	userPair(t, files, time.Now().Add(2*time.Hour), "registry.example.org")
	// At this pace there may be polls between the two files, and so pairs that are rejected.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if list := k.log.take(); len(list) > 0 && list[len(list)-1].Event == "reloaded" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new pair is not loaded")
		}
	}
	if a, _ := get(); a != addr {
		t.Error("the open connection was dropped")
	}
	transport.CloseIdleConnections()
	if _, c := get(); c.Equal(cert) {
		t.Error("a new connection gets the old certificate")
	}
}

func TestNotAfterOfAMissingCertificateIsZero(t *testing.T) {
	k := open(t, t.TempDir(), trowtls.Options{})
	if !k.NotAfter(trowtls.User).IsZero() || k.NotAfter(trowtls.CA).Before(k.NotAfter(trowtls.Leaf)) {
		t.Error("wrong ends")
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
