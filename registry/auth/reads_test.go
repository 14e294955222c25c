package auth_test

import (
	"net/http"
	"testing"

	"trow/registry/auth"
)

func TestReadsSaysWhatASenderMayPull(t *testing.T) {
	users := htpasswd(t, "ann")
	for _, tt := range []struct {
		name      string
		anonymous string
		request   *http.Request
		login     bool
		readable  bool
	}{
		{"without a login, where pulling needs one", "none", request(), false, false},
		{"without a login, where pulling needs none", "pull", request(), false, true},
		{"with a login", "none", withLogin("ann", "ann's"), true, true},
		{"with a wrong password", "pull", withLogin("ann", "x"), false, false},
	} {
		g := guard(t, auth.Options{Htpasswd: users, Anonymous: tt.anonymous})
		login, readable := g.Reads(tt.request)
		if ok := readable == nil || readable("app"); login != tt.login || ok != tt.readable {
			t.Errorf("%s: login %v, readable %v", tt.name, login, ok)
		}
	}
}

// TestWhoReadsEverything without being asked about each repository; a robot reads what it was created for, even where
// everybody may pull.
func TestWhoReadsEverything(t *testing.T) {
	for _, level := range []string{"none", "pull", "create"} {
		g := guard(t, auth.Options{User: "u", Password: "p", Htpasswd: htpasswd(t, "ann"), Anonymous: level,
			Certificate: shown, Reviewer: &reviewer{}})
		secret := create(t, g, robot("ci", "pull", "a"))
		for _, row := range []struct {
			name string
			r    *http.Request
			all  bool
			want string // of a and b
		}{
			{"the owner", withLogin("u", "p"), true, ""},
			{"a user", withLogin("ann", "ann's"), true, ""},
			{"a certificate", withCertificate("ann"), true, ""},
			{"a robot", withLogin("x", secret), false, "a"},
			{"no login", request(), level != "none", ""},
		} {
			who, err := g.Identify(row.r)
			if err != nil {
				t.Fatal(err)
			}
			readable, got := g.Readable(t.Context(), who), ""
			if (readable == nil) != row.all {
				t.Errorf("%s, %s: reads everything: %v, want %v", level, row.name, readable == nil, row.all)
			}
			for _, repo := range []string{"a", "b"} {
				if readable == nil {
					continue
				}
				if ok, err := readable(repo); err != nil {
					t.Error(err)
				} else if ok {
					got += repo
				}
			}
			if got != row.want {
				t.Errorf("%s, %s: reads %q, want %q", level, row.name, got, row.want)
			}
		}
	}
}
