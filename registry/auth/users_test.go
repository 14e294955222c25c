package auth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"

	"trow/registry/auth"
)

func write(t testing.TB, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHtpasswd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	y := strings.Replace(line(t, "bob", "pass:wörd", bcrypt.MinCost), "$2a$", "$2y$", 1) // as htpasswd -B writes it
	write(t, file, "# people", "", line(t, "alice", "a", bcrypt.MinCost+1)+"\r", y, "   ",
		line(t, "jürgen", "j", bcrypt.MinCost))
	g := guard(t, auth.Options{Htpasswd: file})
	for user, password := range map[string]string{"alice": "a", "bob": "pass:wörd", "jürgen": "j"} {
		if name, err := may(g, withLogin(user, password), "a", auth.Push); name != user || err != nil {
			t.Errorf("%s: %q, %v", user, name, err)
		}
		if _, err := may(g, withLogin(user, password+"x"), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s with a wrong password: %v", user, err)
		}
	}
}

// TestInvalidHtpasswd: the error names the line.
func TestInvalidHtpasswd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	good := line(t, "alice", "a", bcrypt.MinCost)
	hash := strings.TrimPrefix(good, "alice:")
	for name, row := range map[string]struct{ line, want string }{
		"MD5":                {"bob:$apr1$x$Lz0YYxrZT6RkXCWGKC8Nd.", "bcrypt"},
		"SHA-1":              {"bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "bcrypt"},
		"crypt":              {"bob:rqXexS6ZhobKA", "bcrypt"},
		"SHA-512":            {"bob:$6$x$" + strings.Repeat("a", 86), "bcrypt"},
		"clear text":         {"bob:secret", "bcrypt"},
		"no hash":            {"bob:", "bcrypt"},
		"no colon":           {"bob", "bcrypt"},
		"a cut hash":         {"bob:" + hash[:59], "bcrypt"},
		"a longer one":       {"bob:" + hash + "x", "bcrypt"},
		"a costly one":       {"bob:" + strings.Replace(hash, "$04$", "$15$", 1), "at most 14"},
		"a cheap one":        {"bob:" + strings.Replace(hash, "$04$", "$03$", 1), "invalid bcrypt hash"},
		"no name":            {":" + hash, "want 1 to"},
		"control characters": {"bo\x1bb:" + hash, "control"},
		"no UTF-8":           {"bo\xffb:" + hash, "UTF-8"},
		"a long name":        {strings.Repeat("b", 256) + ":" + hash, "want 1 to"},
		"a user twice":       {good, "twice"},
	} {
		write(t, file, good, row.line)
		_, err := auth.New(auth.Options{Dir: t.TempDir(), Htpasswd: file})
		if err == nil || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), row.want) ||
			strings.Contains(err.Error(), hash) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("#\n", 1<<20)), 0o600); err != nil { // huge
		t.Fatal(err)
	}
	if _, err := auth.New(auth.Options{Dir: t.TempDir(), Htpasswd: file}); err == nil ||
		!strings.Contains(err.Error(), "more than") {
		t.Errorf("a huge file: %v", err)
	}
}

// TestALoginCostsTheSame for each user who exists or not, with the right password or not, with a cheap hash or a costly
// one.
func TestALoginCostsTheSame(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	write(t, file, line(t, "cheap", "p", 4), line(t, "costly", "p", 7))
	g := guard(t, auth.Options{User: "owner", Password: "p", Htpasswd: file})
	work := auth.CountComparisons(t)
	for _, user := range []string{"cheap", "costly", "owner", "unknown"} {
		for _, password := range []string{"p", "wrong", strings.Repeat("x", 100)} {
			_, _ = g.Identify(withLogin(user, password))
			if n := work(); n != 1<<(7-4) {
				t.Errorf("%s with %.5s: the work of %d comparisons", user, password, n)
			}
		}
	}
	if _, err := g.Identify(withLogin("costly", "p")); err != nil || work() != 0 {
		t.Errorf("a login that was verified is compared again: %v", err)
	}
}

// TestHtpasswdChanges while the guard runs: a valid file takes effect, an invalid one does not, and the tokens of users
// who were removed are invalid.
func TestHtpasswdChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "htpasswd")
		write(t, file, line(t, "alice", "old", bcrypt.MinCost), line(t, "bob", "b", bcrypt.MinCost))
		var log bytes.Buffer // read after Run has returned
		g := guard(t, auth.Options{Htpasswd: file, Log: zerolog.New(&log)})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		bob := ask(t, g, tokenGET("bob", "b", "repository:a:pull"), 200).Token
		if _, err := g.Identify(withLogin("alice", "old")); err != nil {
			t.Fatal(err)
		}
		write(t, file, "bad")
		time.Sleep(time.Minute)
		if _, err := g.Identify(withLogin("alice", "old")); err != nil {
			t.Errorf("after a bad file: %v", err)
		}
		write(t, file, line(t, "alice", "new", bcrypt.MinCost))
		time.Sleep(time.Minute)
		for r, want := range map[*http.Request]string{withLogin("alice", "old"): "4", withLogin("alice", "new"): "+",
			withLogin("bob", "b"): "4", bearer(bob): "4"} {
			if _, err := g.Identify(r); sign(err) != want {
				t.Errorf("%v: %v", r.Header, err)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := g.Identify(withLogin("alice", "new")); err != nil {
			t.Errorf("without the file: %v", err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		levels := ""
		for line := range strings.Lines(log.String()) {
			var l struct{ Level, What string }
			if err := json.Unmarshal([]byte(line), &l); err != nil || l.What != "users" {
				t.Errorf("%s: %v", line, err)
			}
			levels += l.Level + " "
		}
		if levels != "error info error " {
			t.Errorf("logged:\n%s", log.String())
		}
	})
}

// from lets a request come from an address.
func from(r *http.Request, addr string) *http.Request {
	r.RemoteAddr = addr + ":1234"
	return r
}

func TestGuessingIsSlowAndDelaysNoOtherUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice", "bob", "carol")})
		const node = "10.0.0.1"
		took := func(user, password, addr string) time.Duration {
			begin := time.Now()
			_, err := g.Identify(from(withLogin(user, password), addr))
			if (err == nil) != (password == user+"'s") {
				t.Errorf("%s: %v", user, err)
			}
			return time.Since(begin)
		}
		took("carol", "carol's", node)
		var all time.Duration
		for range 60 {
			all += took("alice", "wrong", node)
		}
		if all < 3*time.Minute {
			t.Errorf("60 guesses took %v", all)
		}
		for name, d := range map[string]time.Duration{
			"a user who is logged in, from there":                    took("carol", "carol's", node),
			"another user for the first time, from there":            took("bob", "bob's", node),
			"the same user from elsewhere":                           took("alice", "alice's", "10.0.0.2"),
			"the same user from another network of IPv6":             took("alice", "wrong", "[2001:db8::1]"),
			"the same user from there, verified elsewhere meanwhile": took("alice", "alice's", node),
		} {
			if d != 0 {
				t.Errorf("%s waits %v", name, d)
			}
		}
		if d := took("alice", "wrong", node); d != 4*time.Second {
			t.Errorf("the 61st guess waits %v", d)
		}
		time.Sleep(16 * time.Minute)
		if d := took("alice", "wrong", node); d != 0 {
			t.Errorf("after a quarter of an hour it waits %v", d)
		}
	})
}

// TestTheMemoryOfGuessesIsBounded, like that of logins.
func TestTheMemoryOfGuessesIsBounded(t *testing.T) {
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice")})
	auth.SlowComparisons(t, func(_, password []byte) error {
		if strings.HasPrefix(string(password), "right") {
			return nil
		}
		return bcrypt.ErrMismatchedHashAndPassword
	})
	for i := range auth.MaxScores + 100 {
		addr := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		_, _ = g.Identify(from(withLogin(fmt.Sprint("user", i), "wrong"), addr))
	}
	if pairs, addresses := g.Scores(); pairs > auth.MaxScores || addresses > auth.MaxScores {
		t.Errorf("%d pairs, %d addresses", pairs, addresses)
	}
	for i := range auth.MaxKnown + 100 { // each is accepted, as the comparison is replaced
		if _, err := g.Identify(withLogin("alice", fmt.Sprint("right", i))); err != nil {
			t.Fatal(err)
		}
	}
	if users, _ := g.Known(); users > auth.MaxKnown {
		t.Errorf("%d logins are remembered", users)
	}
}

// TestTooManyAtOnce: most requests for one user from one address are refused with ErrBusy; others are not.
func TestTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice", "bob")})
		auth.SlowComparisons(t, func(_,
			_ []byte) error {
			time.Sleep(time.Second)
			return bcrypt.ErrMismatchedHashAndPassword
		})
		results := make(chan error, 100)
		for i := range 100 {
			go func() {
				_, err := g.Identify(from(withLogin("alice", fmt.Sprint(i)), "10.0.0.1"))
				results <- err
			}()
		}
		synctest.Wait()
		begin := time.Now()
		if _, err := g.Identify(from(withLogin("bob", "x"), "10.0.0.1")); !errors.Is(err, auth.ErrUnauthorized) ||
			time.Since(begin) > 10*time.Second {
			t.Errorf("another user: %v after %v", err, time.Since(begin))
		}
		busy := 0
		for range 100 {
			if err := <-results; errors.Is(err, auth.ErrBusy) {
				busy++
			} else if !errors.Is(err, auth.ErrUnauthorized) {
				t.Error(err)
			}
		}
		if busy < 80 {
			t.Errorf("%d of 100 were refused with ErrBusy", busy)
		}
	})
}
