package commands_test

import (
	"net/http"
	"strings"
	"testing"
)

// TestHistoryOfRegistriesWithoutOne: however a registry refuses a path that it does not have, the error says that it
// keeps no history, but only of tags that exist.
func TestHistoryOfRegistriesWithoutOne(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := newRegistry(t)
	s.fill()
	for name, refuse := range map[string]http.HandlerFunc{
		"Distribution": func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"another method": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusMethodNotAllowed)
		},
		"an older Trow": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"errors":[{"code":"UNSUPPORTED","message":"no such path"}]}`))
		},
		"a proxy":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>sign in</html>")) },
		"other JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"a":1}`)) },
	} {
		url, ca := s.remote(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, "/manifest_history/") {
					refuse(w, req)
					return
				}
				next.ServeHTTP(w, req)
			})
		})
		host := strings.TrimPrefix(url, "https://")
		for tag, want := range map[string]string{
			"1.0":  url + " keeps no history of tags: it is not a Trow server, or one of an older version (",
			"none": host + "/team/app:none not found; trow tags " + host + "/team/app lists the tags",
		} {
			_, _, err := s.run("", "history", host+"/team/app:"+tag, "--cacert", ca)
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s, %s: error %v, want %s", name, tag, err, want)
			}
		}
	}
	// An error of another kind is not taken for that.
	url, ca := s.remote(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/manifest_history/") {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	_, _, err := s.run("", "history", "team/app:1.0", "--server", url, "--cacert", ca)
	if err == nil || !strings.Contains(err.Error(), "500") || strings.Contains(err.Error(), "older version") {
		t.Errorf("an internal error: %v", err)
	}
}
