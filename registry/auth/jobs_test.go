package auth_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/auth"
)

// job runs a job, decodes its result, and returns its error.
func job(t *testing.T, g *auth.Guard, name string, q url.Values, done any) string {
	t.Helper()
	w := httptest.NewRecorder()
	g.Jobs()[name].ServeHTTP(w, httptest.NewRequest("POST", "/admin/"+name+"?"+q.Encode(), nil))
	var event struct {
		Done  json.RawMessage
		Error string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &event); err != nil {
		t.Fatalf("%s: %v: %s", name, err, w.Body)
	}
	if event.Error == "" {
		if err := json.Unmarshal(event.Done, done); err != nil {
			t.Fatal(err)
		}
	}
	return event.Error
}

// TestATokenForPlainHTTPComesWithAWarning: without users such a server starts, and a robot is its first login.
func TestATokenForPlainHTTPComesWithAWarning(t *testing.T) {
	q := url.Values{"name": {"ci"}, "repository": {"**"}, "action": {"pull"}}
	for name, row := range map[string]struct {
		o    auth.Options
		want bool
	}{
		"plain":            {auth.Options{Anonymous: "create", PlainHTTP: true}, true},
		"TLS":              {auth.Options{Anonymous: "create"}, false},
		"loopback":         {auth.Options{Anonymous: "create", PlainHTTP: true, Loopback: true}, false},
		"in so many words": {auth.Options{Anonymous: "create", PlainHTTP: true, PublicURL: "http://r.example"}, false},
	} {
		var created auth.CreatedRobot
		text := job(t, guard(t, row.o), auth.JobCreateRobot, q, &created)
		if text != "" || created.Secret == "" || strings.Contains(created.Warning, "set public-url to") != row.want {
			t.Errorf("%s: %s, %+v", name, text, created)
		}
	}
}

func TestJobs(t *testing.T) {
	var log bytes.Buffer
	g := guard(t, auth.Options{User: "owner", Password: "p", Log: zerolog.New(&log)})
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	q := url.Values{"name": {"ci"}, "repository": {"team/**", "x"}, "action": {"pull", "push"},
		"expires": {expires.Format(time.RFC3339)}}
	var created auth.CreatedRobot
	if text := job(t, g, auth.JobCreateRobot, q, &created); text != "" || created.Name != "ci" ||
		!created.Expires.Equal(expires) {
		t.Fatalf("%s, %+v", text, created)
	}
	if user, err := may(g, withLogin("x", created.Secret), "team/a", auth.Push); user != "robot:ci" || err != nil {
		t.Errorf("%s, %v", user, err)
	}
	if text := log.String(); !strings.Contains(text, `"robot":"ci","event":"created"`) ||
		strings.Contains(text, created.Secret) {
		t.Errorf("logged:\n%s", text)
	}
	var again auth.CreatedRobot
	if text := job(t, g, auth.JobCreateRobot, q, &again); !strings.Contains(text, "already exists") {
		t.Errorf("the same name again: %q, %+v", text, again)
	}
	other := maps.Clone(q)
	other.Set("name", "other")
	if text := job(t, g, auth.JobCreateRobot, other, &again); text != "" {
		t.Error(text)
	}
	other.Set("replace", "true")
	if text := job(t, g, auth.JobCreateRobot, other, &again); text != "" || again.Secret == created.Secret {
		t.Errorf("a replacement: %q, %+v", text, again)
	}
	if text := job(t, g, auth.JobRevokeRobot, other, new(auth.Robot)); text != "" {
		t.Error(text)
	}
	log.Reset()
	var list []auth.Robot
	if text := job(t, g, auth.JobListRobots, nil, &list); text != "" || len(list) != 1 ||
		len(list[0].Repositories) != 2 ||
		len(list[0].Actions) != 2 {
		t.Errorf("%s, %+v", text, list)
	}
	var answer auth.Explanation
	q = url.Values{"as": {"robot:ci"}, "action": {"delete"}, "repository": {"x"}}
	if text := job(t, g, auth.JobExplain, q, &answer); text != "" || answer.Allowed ||
		!strings.Contains(answer.Why, "robot") {
		t.Errorf("%s, %+v", text, answer)
	}
	var revoked auth.Robot
	if text := job(t, g, auth.JobRevokeRobot, url.Values{"name": {"ci"}}, &revoked); text != "" ||
		revoked.Name != "ci" {
		t.Errorf("%s, %+v", text, revoked)
	}
	for name, row := range map[string]struct {
		q    url.Values
		want string
	}{
		auth.JobRevokeRobot: {url.Values{"name": {"ci"}}, `robot "ci" does not exist`},
		auth.JobCreateRobot: {url.Values{"name": {"x"}, "repository": {"**"}, "action": {"pull"}, "expires": {"soon"}},
			"expires"},
		auth.JobExplain: {url.Values{"as": {"robot:ci"}, "action": {"pull"}}, `robot "ci" does not exist`},
	} {
		if text := job(t, g, name, row.q, new(any)); !strings.Contains(text, row.want) {
			t.Errorf("%s: %q, want %q", name, text, row.want)
		}
	}
	if text := log.String(); strings.Count(text, `"message":"token"`) != 1 ||
		!strings.Contains(text, `"event":"revoked"`) || strings.Contains(text, created.Secret) {
		t.Errorf("logged:\n%s", text)
	}
}
