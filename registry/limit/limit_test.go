package limit_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/auth"
	"trow/registry/limit"
	"trow/storage"
)

var (
	alice  = auth.Named("alice", nil)
	bob    = auth.Named("bob", nil)
	nobody = auth.Named("", nil)
)

func set(t testing.TB, rules ...limit.Rule) *limit.Limits {
	t.Helper()
	l := &limit.Limits{}
	if err := l.Set(rules); err != nil {
		t.Fatal(err)
	}
	return l
}

func from(addr string) *http.Request {
	r := httptest.NewRequest("GET", "/v2/", nil)
	r.RemoteAddr = addr
	return r
}

var home = from("10.0.0.1:1234")

// enter makes requests and returns how many went through.
func enter(t *testing.T, l *limit.Limits, who *auth.Identity, r *http.Request, n int) (through int) {
	t.Helper()
	for range n {
		p, err := l.Enter(who, auth.Address(r), false)
		var e *limit.Exceeded
		if err != nil && (!errors.As(err, &e) || e.RetryAfter < 1) {
			t.Errorf("%v", err)
		}
		if err == nil {
			through++
		}
		p.Leave()
	}
	return through
}

func TestMistakesInLimitsAreNamed(t *testing.T) {
	for want, r := range map[string]limit.Rule{
		"who: say whom":          {Requests: 1},
		"is none of user:":       {Who: []string{"alice"}, Requests: 1},
		"numbers from 0":         {Who: []string{"*"}, Requests: -1},
		"to 1000000":             {Who: []string{"*"}, Uploads: 1_000_001},
		"burst: it needs":        {Who: []string{"*"}, Burst: 5},
		"at least 16Ki":          {Who: []string{"*"}, PullRate: 100},
		"by-address: true if":    {Who: []string{"anonymous"}, Requests: 1},
		"push-rate: at least 16": {Who: []string{"*"}, PushRate: -1},
	} {
		l := set(t, limit.Rule{Who: []string{"user:alice"}, Uploads: 1})
		err := l.Set([]limit.Rule{{Who: []string{"*"}, Requests: 1}, r})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "limits: limit 2") {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
		if n := enter(t, l, bob, home, 10); n != 10 {
			t.Errorf("limits with a mistake count")
		}
	}
}

func TestEachIdentityHasItsOwnRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := set(t, limit.Rule{Who: []string{"user:admin"}}, limit.Rule{Who: []string{"*"}, Requests: 5, Burst: 7})
		if n := enter(t, l, alice, home, 20); n != 7 {
			t.Errorf("alice: %d at once, want 7", n)
		}
		if n := enter(t, l, alice, from("10.0.0.2:1"), 20); n != 0 {
			t.Errorf("alice from elsewhere: %d more", n)
		}
		if n := enter(t, l, bob, home, 20); n != 7 {
			t.Errorf("bob: %d at once, want 7", n)
		}
		if n := enter(t, l, auth.Named("cert:alice", nil), home, 20); n != 7 {
			t.Errorf("the certificate of alice: %d at once, want 7", n)
		}
		if n := enter(t, l, auth.Named("alice", []string{"x"}), home, 20); n != 7 {
			t.Errorf("the cluster's alice: %d at once, want 7", n)
		}
		if n := enter(t, l, auth.Named("admin", nil), home, 100); n != 100 {
			t.Errorf("whoever has a limit without numbers before: %d", n)
		}
		time.Sleep(time.Second)
		if n := enter(t, l, alice, home, 20); n != 5 {
			t.Errorf("alice: %d a second later, want 5", n)
		}
		_, err := l.Enter(alice, auth.Address(home), false)
		if err == nil || !strings.Contains(err.Error(), "alice may have 5 requests per second, and not more (setting limits, limit 2: requests)") {
			t.Errorf("%v", err)
		}
		if err := l.Set(nil); err != nil || enter(t, l, alice, home, 50) != 50 {
			t.Errorf("limits that are gone count: %v", err)
		}
	})
}

func TestThoseWithoutALoginHaveALimitOnlyByAddress(t *testing.T) {
	for _, who := range []string{"*", "authenticated"} {
		if n := enter(t, set(t, limit.Rule{Who: []string{who}, Requests: 1, Burst: 1}), nobody, home, 50); n != 50 {
			t.Errorf("%s: %d, and nobody had said by-address", who, n)
		}
	}
	l := set(t, limit.Rule{Who: []string{"anonymous"}, ByAddress: true, Requests: 1, Burst: 3})
	for _, addr := range []string{"10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"} {
		if n := enter(t, l, nobody, from(addr), 20); n != 3 {
			t.Errorf("%s: %d, want 3", addr, n)
		}
	}
	for _, addr := range []string{"10.0.0.1:99", "[::ffff:10.0.0.2]:1", "[fd00::2]:1"} { // the same addresses, or the same network
		if n := enter(t, l, nobody, from(addr), 20); n != 0 {
			t.Errorf("%s: %d more", addr, n)
		}
	}
	if n := enter(t, l, alice, home, 50); n != 50 {
		t.Errorf("alice has the limit of those without a login")
	}
}

func TestUploadsAtOnceAreBounded(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, Uploads: 2})
	one, err1 := l.Enter(alice, auth.Address(home), true)
	two, err2 := l.Enter(alice, auth.Address(home), true)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := l.Enter(alice, auth.Address(home), true); err == nil || !strings.Contains(err.Error(), "2 uploads under way at once, and not more (setting limits, limit 1: uploads)") {
		t.Errorf("a third one: %v", err)
	}
	if _, err := l.Enter(alice, auth.Address(home), false); err != nil {
		t.Errorf("what is no upload: %v", err)
	}
	if p, err := l.Enter(bob, auth.Address(home), true); err != nil {
		t.Errorf("bob's: %v", err)
	} else {
		p.Leave()
	}
	one.Leave()
	if _, err := l.Enter(alice, auth.Address(home), true); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	two.Leave()
}

// TestTheMemoryIsBounded, whoever comes; who has uploads under way is not forgotten.
func TestTheMemoryIsBounded(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, ByAddress: true, Requests: 1, Burst: 1, Uploads: 1})
	busy, err := l.Enter(alice, auth.Address(home), true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * limit.MaxAccounts {
		if _, err := l.Enter(nobody, auth.Address(from(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))), false); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Accounts(); n != limit.MaxAccounts {
		t.Errorf("%d accounts, want %d", n, limit.MaxAccounts)
	}
	if _, err := l.Enter(alice, auth.Address(home), true); err == nil {
		t.Error("alice's upload is forgotten")
	}
	busy.Leave()
}

func TestRatesSlowTransfersDown(t *testing.T) {
	const rate, size = 1 << 20, 3 << 20
	content := bytes.Repeat([]byte("trow"), size/4)
	synctest.Test(t, func(t *testing.T) {
		l := set(t, limit.Rule{Who: []string{"*"}, PullRate: rate, PushRate: rate})
		push, start := httptest.NewRequest("PUT", "/v2/", bytes.NewReader(content)), time.Now()
		p, err := l.Enter(alice, auth.Address(push), true)
		if err != nil {
			t.Fatal(err)
		}
		_, push = p.Shape(httptest.NewRecorder(), push)
		got, err := io.ReadAll(push.Body)
		if took := time.Since(start); err != nil || !bytes.Equal(got, content) || took < 2500*time.Millisecond || took > 3100*time.Millisecond {
			t.Errorf("a push of 3 MiB at 1 MiB/s: %v, %d bytes, %v", took, len(got), err)
		}
		start = time.Now()
		var wg sync.WaitGroup
		for range 3 { // connections share the rate
			wg.Go(func() {
				p, err := l.Enter(alice, auth.Address(home), false)
				if err != nil {
					t.Error(err)
				}
				out := httptest.NewRecorder()
				w, _ := p.Shape(out, home)
				n, err := io.CopyN(w, struct{ io.Reader }{bytes.NewReader(content)}, size/3)
				if err != nil || n != size/3 || !bytes.Equal(out.Body.Bytes(), content[:size/3]) {
					t.Errorf("%d, %v", n, err)
				}
				p.Leave()
			})
		}
		wg.Wait()
		if took := time.Since(start); took < 2500*time.Millisecond || took > 3100*time.Millisecond {
			t.Errorf("three pulls of 1 MiB at 1 MiB/s: %v", took)
		}
		start = time.Now()
		p, _ = l.Enter(bob, auth.Address(home), false)
		w, _ := p.Shape(httptest.NewRecorder(), home)
		if n, err := w.Write(content); n != size || err != nil || time.Since(start) < 2500*time.Millisecond {
			t.Errorf("written by one call: %d, %v, %v", n, err, time.Since(start))
		}
	})
}

// TestNothingIsWrappedWithoutARate, so that files go out as they do.
func TestNothingIsWrappedWithoutARate(t *testing.T) {
	for name, l := range map[string]*limit.Limits{"none": nil, "empty": {}, "others": set(t, limit.Rule{Who: []string{"user:bob"}, PullRate: 1 << 20}),
		"requests alone": set(t, limit.Rule{Who: []string{"*"}, Requests: 1000})} {
		p, err := l.Enter(alice, auth.Address(home), true)
		if err != nil {
			t.Fatal(err)
		}
		out := httptest.NewRecorder()
		if w, r := p.Shape(out, home); w != http.ResponseWriter(out) || r != home {
			t.Errorf("%s: something is wrapped", name)
		}
		p.Leave()
	}
}

// steps is a ResponseWriter that notes what it is handed to be sent by itself.
type steps struct {
	http.ResponseWriter
	sizes []int64
}

func (s *steps) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *steps) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(io.Discard, r)
	if l, ok := r.(*io.LimitedReader); ok {
		if _, file := l.R.(*strings.Reader); file {
			s.sizes = append(s.sizes, n)
		}
	}
	return n, err
}

func TestAFileIsHandedOnInLargeSteps(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, PullRate: 1 << 30})
	p, err := l.Enter(alice, auth.Address(home), false)
	if err != nil {
		t.Fatal(err)
	}
	s := &steps{ResponseWriter: httptest.NewRecorder()}
	w, _ := p.Shape(s, home)
	n, err := io.CopyN(w, strings.NewReader(strings.Repeat("x", 3<<20+5)), 3<<20+1)
	if err != nil || n != 3<<20+1 || fmt.Sprint(s.sizes) != "[1048576 1048576 1048576 1]" {
		t.Errorf("%d, %v: %v", n, err, s.sizes)
	}
	if n, err := io.CopyN(w, strings.NewReader("short"), 100); n != 5 || err != io.EOF {
		t.Errorf("a source that ends early: %d, %v", n, err)
	}
	if http.NewResponseController(w).Flush() != nil {
		t.Error("the controller does not find the connection")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]limit.Size{"0": 0, "1000": 1000, "16Ki": 16 << 10, "1.5Gi": 3 << 29, "2G": 2e9, " 10Mi ": 10 << 20} {
		var s limit.Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "-1", "x", "10GB", "1e9", "9999Pi", "Gi", "NaN", "Inf", "0x10", "1 Gi", "1__0"} {
		var s limit.Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d", text, s)
		}
	}
	for size, want := range map[limit.Size]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1KiB", 10 << 30: "10GiB", 3 << 29: "1.5GiB"} {
		if size.String() != want {
			t.Errorf("%d: %s, want %s", int64(size), size, want)
		}
	}
}

func TestMistakesInQuotasAreNamed(t *testing.T) {
	for want, q := range map[string]limit.Quota{
		"is no pattern":    {Repositories: []string{"a b"}, Bytes: 1},
		"say which":        {Bytes: 1},
		"bytes: say how":   {Repositories: []string{"a"}},
		"together, as 10G": {Repositories: []string{"a"}, Bytes: -1},
	} {
		if _, err := limit.Quotas([]limit.Quota{{Repositories: []string{"**"}, Bytes: 1}, q}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "quota 2") {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	all, err := limit.Quotas([]limit.Quota{{Repositories: []string{"team/**", "x"}, Bytes: 5}})
	if err != nil || len(all) != 1 || !all[0].Match("team/a/b") || !all[0].Match("x") || all[0].Match("y") || all[0].Bytes != 5 || all[0].Name != "team/**, x" {
		t.Errorf("%+v, %v", all, err)
	}
	text := limit.OverQuota(storage.Excess{Usage: storage.Usage{Quota: all[0], Used: 4}, Added: 2})
	if !strings.Contains(text, "team/**, x is 5 bytes (setting quotas); they hold 4 bytes, and this would add 2 bytes") {
		t.Error(text)
	}
}

func BenchmarkEnter(b *testing.B) {
	for name, l := range map[string]*limit.Limits{"none": {}, "one": set(b, limit.Rule{Who: []string{"*"}, Requests: 1e6, Uploads: 5})} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, _ := l.Enter(alice, auth.Address(home), true)
				p.Leave()
			}
		})
	}
}
