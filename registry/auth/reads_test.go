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
