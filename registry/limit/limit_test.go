package limit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry/auth"
	"trow/registry/limit"
	"trow/storage"
)

var (
	alice     = auth.Named("alice", nil)
	bob       = auth.Named("bob", nil)
	anonymous = auth.Named("", nil)
)

func set(t testing.TB, rules ...limit.Rule) *limit.Limits {
	t.Helper()
	l := &limit.Limits{}
	if err := l.Set(rules); err != nil {
		t.Fatal(err)
	}
	return l
}

// from returns the address of a request.
func from(addr string) netip.Addr {
	r := httptest.NewRequest("GET", "/v2/", nil)
	r.RemoteAddr = addr
	return auth.Address(r)
}

// pull is a request without a body.
var pull = httptest.NewRequest("GET", "/v2/", nil)

var home = from("10.0.0.1:1234")

// quantity returns a number of bytes.
func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

// enter makes requests and returns how many were admitted.
func enter(t *testing.T, l *limit.Limits, who *auth.Identity, addr netip.Addr, n int) (admitted int) {
	t.Helper()
	for range n {
		p, err := l.Enter(who, addr, false)
		var e *limit.Exceeded
		if err != nil && (!errors.As(err, &e) || e.RetryAfter < 1) {
			t.Errorf("%v", err)
		}
		if err == nil {
			admitted++
		}
		p.Leave()
	}
	return admitted
}

func TestInvalidLimits(t *testing.T) {
	for want, r := range map[string]limit.Rule{
		"who: at least one":   {Requests: 1},
		"want one of user:":   {Who: []string{"alice"}, Requests: 1},
		"numbers from 0":      {Who: []string{"*"}, Requests: -1},
		"to 1000000":          {Who: []string{"*"}, Uploads: 1_000_001},
		"burst: needs":        {Who: []string{"*"}, Burst: 5},
		"at least 16Ki":       {Who: []string{"*"}, PullRate: quantity(100)},
		"by-address: true if": {Who: []string{"anonymous"}, Requests: 1},
		"push-rate: want at":  {Who: []string{"*"}, PushRate: quantity(-1)},
	} {
		l := set(t, limit.Rule{Who: []string{"user:alice"}, Uploads: 1})
		err := l.Set([]limit.Rule{{Who: []string{"*"}, Requests: 1}, r})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "limits: limit 2") {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
		if n := enter(t, l, bob, home, 10); n != 10 {
			t.Errorf("limits with a mistake take effect")
		}
	}
}

func TestTheBoundsOfLimits(t *testing.T) {
	for _, row := range []struct {
		rule limit.Rule
		want string // empty: valid
	}{
		{limit.Rule{Who: []string{"*"}, Requests: 1_000_000, Burst: 1_000_000, Uploads: 1_000_000}, ""},
		{limit.Rule{Who: []string{"*"}, Requests: 1, Burst: 1_000_001}, "to 1000000"},
		{limit.Rule{Who: []string{"*"}, Burst: 1}, "burst: needs"},
		{limit.Rule{Who: []string{"*"}, PullRate: quantity(16 << 10), PushRate: quantity(16 << 10)}, ""},
		{limit.Rule{Who: []string{"*"}, PullRate: quantity(16<<10 - 1)}, "at least 16Ki"},
		{limit.Rule{Who: []string{"anonymous"}}, ""},
		{limit.Rule{Who: []string{"anonymous"}, PullRate: quantity(1 << 20)}, "by-address: true if"},
		{limit.Rule{Who: []string{"anonymous"}, PushRate: quantity(1 << 20)}, "by-address: true if"},
		{limit.Rule{Who: []string{"anonymous"}, Uploads: 1}, "by-address: true if"},
	} {
		err := (&limit.Limits{}).Set([]limit.Rule{row.rule})
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.rule, err, row.want)
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
			t.Errorf("an identity with an earlier limit without numbers: %d", n)
		}
		time.Sleep(time.Second)
		if n := enter(t, l, alice, home, 20); n != 5 {
			t.Errorf("alice: %d a second later, want 5", n)
		}
		_, err := l.Enter(alice, home, false)
		if err == nil || !strings.Contains(err.Error(),
			"alice may have 5 requests per second (setting limits, limit 2: requests); retry") {
			t.Errorf("%v", err)
		}
		if err := l.Set(nil); err != nil || enter(t, l, alice, home, 50) != 50 {
			t.Errorf("limits that were removed are still in effect: %v", err)
		}
	})
}

func TestClientsWithoutALoginHaveALimitOnlyByAddress(t *testing.T) {
	for _, who := range []string{"*", "authenticated"} {
		if n := enter(t, set(t, limit.Rule{Who: []string{who}, Requests: 1, Burst: 1}), anonymous, home, 50); n != 50 {
			t.Errorf("%s: %d, without by-address", who, n)
		}
	}
	l := set(t, limit.Rule{Who: []string{"anonymous"}, ByAddress: true, Requests: 1, Burst: 3})
	for _, addr := range []string{"10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"} {
		if n := enter(t, l, anonymous, from(addr), 20); n != 3 {
			t.Errorf("%s: %d, want 3", addr, n)
		}
	}
	// the same addresses, or the same network
	for _, addr := range []string{"10.0.0.1:99", "[::ffff:10.0.0.2]:1", "[fd00::2]:1"} {
		if n := enter(t, l, anonymous, from(addr), 20); n != 0 {
			t.Errorf("%s: %d more", addr, n)
		}
	}
	if n := enter(t, l, alice, home, 50); n != 50 {
		t.Errorf("alice has the limit of clients without a login")
	}
}

// TestTheSocketHasNoLimit: an administrator's import must not wait for the limits of clients.
func TestTheSocketHasNoLimit(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, ByAddress: true, Requests: 1, Burst: 1, PullRate: quantity(1 << 20)})
	if n := enter(t, l, auth.Socket, home, 50); n != 50 {
		t.Errorf("%d of 50", n)
	}
	if p, err := l.Enter(auth.Socket, home, true); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestUploadsAtOnceAreBounded(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, Uploads: 2})
	one, err1 := l.Enter(alice, home, true)
	two, err2 := l.Enter(alice, home, true)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := l.Enter(alice, home, true); err == nil ||
		!strings.Contains(err.Error(), "2 uploads at once (setting limits, limit 1: uploads)") {
		t.Errorf("a third one: %v", err)
	}
	if _, err := l.Enter(alice, home, false); err != nil {
		t.Errorf("another request: %v", err)
	}
	if p, err := l.Enter(bob, home, true); err != nil {
		t.Errorf("bob's: %v", err)
	} else {
		p.Leave()
	}
	one.Leave()
	if _, err := l.Enter(alice, home, true); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	two.Leave()
}

// TestTheMemoryIsBounded, however many addresses there are; an account with uploads under way is not forgotten.
func TestTheMemoryIsBounded(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, ByAddress: true, Requests: 1, Burst: 1, Uploads: 1})
	busy, err := l.Enter(alice, home, true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * limit.MaxAccounts {
		if _, err := l.Enter(anonymous, from(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)), false); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Accounts(); n != limit.MaxAccounts {
		t.Errorf("%d accounts, want %d", n, limit.MaxAccounts)
	}
	if _, err := l.Enter(alice, home, true); err == nil {
		t.Error("alice's upload is forgotten")
	}
	busy.Leave()
}

// TestWithoutLimitsThereIsNoCost: an empty list makes no accounts, and a request takes no memory.
func TestWithoutLimitsThereIsNoCost(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, Requests: 1, ByAddress: true})
	enter(t, l, alice, home, 1)
	if n := testing.AllocsPerRun(100, func() { _ = l.Set(nil) }); n != 0 {
		t.Errorf("no limits: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = l.Enter(alice, home, true) }); n != 0 {
		t.Errorf("a request without limits: %v allocations", n)
	}
}

func TestRatesSlowTransfersDown(t *testing.T) {
	const rate, size = 1 << 20, 3 << 20
	content := bytes.Repeat([]byte("trow"), size/4)
	synctest.Test(t, func(t *testing.T) {
		l := set(t, limit.Rule{Who: []string{"*"}, PullRate: quantity(rate), PushRate: quantity(rate)})
		push, start := httptest.NewRequest("PUT", "/v2/", bytes.NewReader(content)), time.Now()
		p, err := l.Enter(alice, home, true)
		if err != nil {
			t.Fatal(err)
		}
		_, push.Body = p.Shape(t.Context(), httptest.NewRecorder(), push.Body)
		got, err := io.ReadAll(push.Body)
		if took := time.Since(start); err != nil || !bytes.Equal(got, content) || took < 2500*time.Millisecond ||
			took > 3100*time.Millisecond {
			t.Errorf("a push of 3 MiB at 1 MiB/s: %v, %d bytes, %v", took, len(got), err)
		}
		start = time.Now()
		var wg sync.WaitGroup
		for range 3 { // connections share the rate
			wg.Go(func() {
				p, err := l.Enter(alice, home, false)
				if err != nil {
					t.Error(err)
				}
				out := httptest.NewRecorder()
				w, _ := p.Shape(t.Context(), out, pull.Body)
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
		p, _ = l.Enter(bob, home, false)
		w, _ := p.Shape(t.Context(), httptest.NewRecorder(), pull.Body)
		if n, err := w.Write(content); n != size || err != nil || time.Since(start) < 2500*time.Millisecond {
			t.Errorf("written by one call: %d, %v, %v", n, err, time.Since(start))
		}
	})
}

// push returns a body of alice's, slowed down by her limit.
func push(t *testing.T, ctx context.Context, l *limit.Limits, content io.Reader) io.Reader {
	t.Helper()
	p, err := l.Enter(alice, home, true)
	if err != nil {
		t.Fatal(err)
	}
	_, body := p.Shape(ctx, httptest.NewRecorder(), io.NopCloser(content))
	return body
}

// TestAClientThatDisconnectsEndsItsWaiting: the bytes of a request that waits must not be taken for the whole of it.
func TestAClientThatDisconnectsEndsItsWaiting(t *testing.T) {
	l := set(t, limit.Rule{Who: []string{"*"}, PushRate: quantity(1 << 20)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := push(t, ctx, l, strings.NewReader("trow")).Read(make([]byte, 9)); n != 4 || err != context.Canceled {
		t.Errorf("%d, %v, want 4 bytes and %v", n, err, context.Canceled)
	}
	// What the connection says comes first.
	body := push(t, ctx, l, iotest.DataErrReader(strings.NewReader("trow")))
	if n, err := body.Read(make([]byte, 9)); n != 4 || err != io.EOF {
		t.Errorf("%d, %v, want 4 bytes and %v", n, err, io.EOF)
	}
}

// TestTheEndOfABodyDoesNotWait, while another connection of the same identity has used up the rate.
func TestTheEndOfABodyDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := set(t, limit.Rule{Who: []string{"*"}, PushRate: quantity(1 << 20)})
		other := push(t, t.Context(), l, strings.NewReader(strings.Repeat("x", 1<<20)))
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, other, make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if n, err := push(t, t.Context(), l, strings.NewReader("")).Read(make([]byte, 9)); n != 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("the end of a body waits for %v", took)
		}
		wg.Wait()
	})
}

// TestEachDirectionHasItsOwnRate: a rate of pulls wraps no body, one of pushes no writer, and nothing an empty body.
func TestEachDirectionHasItsOwnRate(t *testing.T) {
	content := io.NopCloser(strings.NewReader("trow"))
	for name, row := range map[string]struct {
		rule           limit.Rule
		in             io.ReadCloser
		writer, reader bool // whether they are wrapped
	}{
		"pull":                {limit.Rule{PullRate: quantity(1 << 20)}, content, true, false},
		"push":                {limit.Rule{PushRate: quantity(1 << 20)}, content, false, true},
		"push of an empty":    {limit.Rule{PushRate: quantity(1 << 20)}, http.NoBody, false, false},
		"push without a body": {limit.Rule{PushRate: quantity(1 << 20)}, nil, false, false},
	} {
		row.rule.Who = []string{"*"}
		p, err := set(t, row.rule).Enter(alice, home, true)
		if err != nil {
			t.Fatal(err)
		}
		out := httptest.NewRecorder()
		w, in := p.Shape(t.Context(), out, row.in)
		if (w != http.ResponseWriter(out)) != row.writer || (in != row.in) != row.reader {
			t.Errorf("%s: %T, %T", name, w, in)
		}
		p.Leave()
	}
}

// TestNothingIsWrappedWithoutARate, so that files go out by sendfile.
func TestNothingIsWrappedWithoutARate(t *testing.T) {
	for name, l := range map[string]*limit.Limits{"none": nil, "empty": {},
		"others":         set(t, limit.Rule{Who: []string{"user:bob"}, PullRate: quantity(1 << 20)}),
		"requests alone": set(t, limit.Rule{Who: []string{"*"}, Requests: 1000})} {
		p, err := l.Enter(alice, home, true)
		if err != nil {
			t.Fatal(err)
		}
		out := httptest.NewRecorder()
		if w, body := p.Shape(t.Context(), out, pull.Body); w != http.ResponseWriter(out) || body != pull.Body {
			t.Errorf("%s: something is wrapped", name)
		}
		p.Leave()
	}
}

// steps is a ResponseWriter that notes the sizes of what it sends by ReadFrom.
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
	l := set(t, limit.Rule{Who: []string{"*"}, PullRate: quantity(1 << 30)})
	p, err := l.Enter(alice, home, false)
	if err != nil {
		t.Fatal(err)
	}
	s := &steps{ResponseWriter: httptest.NewRecorder()}
	w, _ := p.Shape(t.Context(), s, pull.Body)
	n, err := io.CopyN(w, strings.NewReader(strings.Repeat("x", 3<<20+5)), 3<<20+1)
	if err != nil || n != 3<<20+1 || fmt.Sprint(s.sizes) != "[1048576 1048576 1048576 1]" {
		t.Errorf("%d, %v: %v", n, err, s.sizes)
	}
	if n, err := io.CopyN(w, strings.NewReader("short"), 100); n != 5 || err != io.EOF {
		t.Errorf("a source that ends early: %d, %v", n, err)
	}
	source := &io.LimitedReader{R: strings.NewReader("short"), N: 100}
	if n, err := w.(io.ReaderFrom).ReadFrom(source); n != 5 || err != nil || source.N != 95 {
		t.Errorf("a source that ends early: %d, %v; %d bytes are left of 100, want 95", n, err, source.N)
	}
	if http.NewResponseController(w).Flush() != nil {
		t.Error("the controller does not reach the connection")
	}
}

func TestInvalidQuotas(t *testing.T) {
	for want, q := range map[string]limit.Quota{
		"not a valid pattern": {Repositories: []string{"a b"}, Bytes: quantity(1)},
		"at least one":        {Bytes: quantity(1)},
		"bytes: want":         {Repositories: []string{"a"}},
		"such as 10Gi":        {Repositories: []string{"a"}, Bytes: quantity(-1)},
	} {
		_, err := limit.Quotas([]limit.Quota{{Repositories: []string{"**"}, Bytes: quantity(1)}, q})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "quota 2") {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	all, err := limit.Quotas([]limit.Quota{{Repositories: []string{"team/**", "x"}, Bytes: quantity(5)}})
	if err != nil || len(all) != 1 || !all[0].Match("team/a/b") || !all[0].Match("x") || all[0].Match("y") ||
		all[0].Bytes != 5 || all[0].Name != "team/**, x" {
		t.Errorf("%+v, %v", all, err)
	}
	text := limit.OverQuota(storage.Excess{Usage: storage.Usage{Quota: all[0], Used: 4}, Added: 2})
	if !strings.Contains(text, "team/**, x is 5 B (setting quotas); they hold 4 B, and this would add 2 B") {
		t.Error(text)
	}
}

func BenchmarkEnter(b *testing.B) {
	for name, l := range map[string]*limit.Limits{"none": {},
		"one": set(b, limit.Rule{Who: []string{"*"}, Requests: 1e6, Uploads: 5})} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, _ := l.Enter(alice, home, true)
				p.Leave()
			}
		})
	}
}
