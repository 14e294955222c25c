package auth_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"trow/registry/auth"
)

func request(headers ...string) *http.Request {
	r := httptest.NewRequest("GET", "/v2/", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func withLogin(user, password string) *http.Request {
	r := request()
	r.SetBasicAuth(user, password)
	return r
}

func basic(t *testing.T, o auth.BasicOptions) *auth.Basic {
	t.Helper()
	b, err := auth.NewBasic(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatMayBeDoneWithoutALogin(t *testing.T) {
	all := []auth.Action{auth.Login, auth.Pull, auth.Catalog, auth.Push, auth.Delete}
	for _, row := range []struct {
		name string
		o    auth.BasicOptions
		want string // for each action: + allowed, 4 ErrUnauthorized, - ErrDenied
	}{
		{"no user, push", auth.BasicOptions{Anonymous: auth.ReadWrite}, "++++-"},
		{"no user, push, loopback", auth.BasicOptions{Anonymous: auth.ReadWrite, AnonymousDelete: true}, "+++++"},
		{"no user, pull", auth.BasicOptions{Anonymous: auth.ReadOnly}, "+++--"},
		{"no user, pull, loopback", auth.BasicOptions{Anonymous: auth.ReadOnly, AnonymousDelete: true}, "+++--"},
		{"user, push", auth.BasicOptions{User: "u", Password: "p", Anonymous: auth.ReadWrite}, "4+++4"},
		{"user, pull", auth.BasicOptions{User: "u", Password: "p", Anonymous: auth.ReadOnly}, "4++44"},
		{"user, none", auth.BasicOptions{User: "u", Password: "p"}, "44444"},
	} {
		b := basic(t, row.o)
		got := ""
		for _, a := range all {
			user, err := b.Authorize(request(), "repo", a)
			switch {
			case user != "":
				t.Errorf("%s, %s: anonymous is called %q", row.name, a, user)
			case err == nil:
				got += "+"
			case errors.Is(err, auth.ErrUnauthorized):
				got += "4"
			case errors.Is(err, auth.ErrDenied):
				got += "-"
			}
		}
		if got != row.want {
			t.Errorf("%s: %s for %v, want %s", row.name, got, all, row.want)
		}
		if row.o.User != "" {
			for _, a := range all {
				if user, err := b.Authorize(withLogin("u", "p"), "repo", a); user != "u" || err != nil {
					t.Errorf("%s, %s with a login: %q, %v", row.name, a, user, err)
				}
			}
		}
	}
}

func TestCredentials(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, password := range []string{"p", "p:q::", "pässwörd ☃", long, "nul\x00after", " spaces "} {
		b := basic(t, auth.BasicOptions{User: "üser", Password: password})
		for range 2 { // by bcrypt, then from memory
			if _, err := b.Authorize(withLogin("üser", password), "", auth.Push); err != nil {
				t.Errorf("%q: %v", password, err)
			}
		}
		for _, wrong := range []*http.Request{withLogin("üser", password+"x"), withLogin("üser", ""), withLogin("other", password),
			withLogin("", password), withLogin("üser"+password, "")} {
			if _, err := b.Authorize(wrong, "", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
				t.Errorf("%q: a wrong login gives %v", password, err)
			}
		}
	}
	b := basic(t, auth.BasicOptions{User: "u", Password: long})
	if _, err := b.Authorize(withLogin("u", long[:72]), "", auth.Pull); err == nil {
		t.Error("the first 72 bytes of a longer password are enough")
	}
	b = basic(t, auth.BasicOptions{User: "u", Password: "nul\x00a"})
	if _, err := b.Authorize(withLogin("u", "nul\x00b"), "", auth.Pull); err == nil {
		t.Error("what follows a NUL does not count")
	}
}

func TestHeadersThatAreNoLogin(t *testing.T) {
	b := basic(t, auth.BasicOptions{User: "u", Password: "p", Anonymous: auth.ReadWrite})
	for _, r := range []*http.Request{
		request("Authorization", "Bearer x"),
		request("Authorization", "Basic !!!"),
		request("Authorization", "Basic"),
		request("Authorization", "Basic dXA="), // no colon
		request("Authorization", "Basic dTpw", "Authorization", "Basic dTpw"),
	} {
		if _, err := b.Authorize(r, "", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%v: %v", r.Header, err)
		}
	}
	// Where there is no user, a client may send what it likes.
	b = basic(t, auth.BasicOptions{Anonymous: auth.ReadWrite})
	if _, err := b.Authorize(withLogin("some", "body"), "", auth.Push); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatCannotBeMeant(t *testing.T) {
	for _, o := range []auth.BasicOptions{
		{Password: "p", Anonymous: auth.ReadWrite},
		{User: "u", Anonymous: auth.ReadWrite},
		{},
		{User: "a:b", Password: "p"},
		{User: "a\nb", Password: "p"},
	} {
		if _, err := auth.NewBasic(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestLevels(t *testing.T) {
	for s, want := range map[string]auth.Level{"none": auth.None, "pull": auth.ReadOnly, "push": auth.ReadWrite} {
		if got, err := auth.ParseLevel(s); got != want || err != nil {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if _, err := auth.ParseLevel("delete"); err == nil {
		t.Error("delete is a level")
	}
}

func TestAGuessThatIsGivenUpDoesNotWait(t *testing.T) {
	b := basic(t, auth.BasicOptions{User: "u", Password: "p"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := b.Authorize(withLogin("u", "wrong"), "", auth.Pull); err == nil {
				t.Error("a wrong password was taken")
			}
		})
	}
	wg.Wait()
	if got := b.Challenge(request(), "", auth.Pull); got != `Basic realm="trow", charset="UTF-8"` {
		t.Errorf("challenge %q", got)
	}
}

func BenchmarkKnownLogin(b *testing.B) {
	a, err := auth.NewBasic(auth.BasicOptions{User: "u", Password: "p"})
	if err != nil {
		b.Fatal(err)
	}
	r := withLogin("u", "p")
	for b.Loop() {
		if _, err := a.Authorize(r, "repo", auth.Pull); err != nil {
			b.Fatal(err)
		}
	}
}
