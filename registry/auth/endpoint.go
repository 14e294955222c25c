package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxForm bounds a POST to the token endpoint.
	maxForm = 64 << 10
	// maxScopes bounds what is looked at of the scopes asked for. Clients ask for one or two.
	maxScopes = 64
	// maxRepo is the longest name of a repository.
	maxRepo = 255
)

// ServeToken is the token endpoint: GET as Docker's token specification has it, and POST as its OAuth2 one (RFC 6749,
// sections 4.3 and 6). Scopes are cut down to what the identity may do, and never refused: a token that is good for
// less, or for nothing, tells a client more at the next request than a refusal here.
func (g *Guard) ServeToken(w http.ResponseWriter, r *http.Request) {
	g.options.Annotate(r.Context(), "route", "token")
	w.Header().Set("Cache-Control", "no-store")
	who, scopes, err := g.applicant(w, r)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.options.Annotate(r.Context(), "user", who.Name)
	s, now := g.state.Load(), time.Now()
	all, err := g.intersect(r.Context(), s, who, scopes)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	_, host := g.base(r)
	token, ends, err := s.issue(who, host, all, now)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	writeToken(w, token, all, now, ends)
}

// writeToken answers with a token, under both of the names that it has.
func writeToken(w http.ResponseWriter, token string, all []access, now, ends time.Time) {
	body, _ := json.Marshal(struct { // strings and a number: it cannot fail
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		IssuedAt    string `json:"issued_at"`
		Scope       string `json:"scope"`
	}{token, token, int(ends.Sub(now) / time.Second), now.UTC().Format(time.RFC3339), scopesText(all)})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body) // a client that has gone is not our concern
}

// What a request to the token endpoint may lack.
var (
	errMethod = errors.New("a token is asked for with GET or POST")
	errForm   = errors.New("a POST has a form of grant_type=password with username and password, or grant_type=refresh_token with a robot's secret as refresh_token")
	errLarge  = errors.New("the form is too large")
)

// applicant tells who asks for a token, and for which scopes.
func (g *Guard) applicant(w http.ResponseWriter, r *http.Request) (*Identity, []string, error) {
	switch r.Method {
	case http.MethodGet:
		who, err := g.Identify(r)
		if err == nil && who.grant != nil { // or a token would live for ever
			err = errBadToken
			g.loginFailed(r, err)
		}
		return who, r.URL.Query()["scope"], err
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
				return nil, nil, errLarge
			}
			return nil, nil, errForm
		}
		who, err := g.granted(r)
		if err != nil {
			g.loginFailed(r, err)
		}
		return who, r.PostForm["scope"], err
	}
	w.Header().Set("Allow", "GET, POST")
	return nil, nil, errMethod
}

// granted takes the credentials of a form.
func (g *Guard) granted(r *http.Request) (*Identity, error) {
	form := r.PostForm
	s := g.state.Load()
	switch form.Get("grant_type") {
	case "password":
		if !s.logins {
			return nobody, nil
		}
		name, password := form.Get("username"), form.Get("password")
		if len(name)+len(password) > maxHeader || strings.Contains(name, ":") {
			return nil, errWrong
		}
		key := sumOf(&g.secret, base64.StdEncoding.EncodeToString([]byte(name+":"+password))) // as in a header
		if p, ok := s.users.known.get(key, time.Time{}); ok {
			return p.who, nil
		}
		return g.password(r.Context(), s, Address(r), key, name, password)
	case "refresh_token":
		if robot := s.robots.find(form.Get("refresh_token"), time.Now()); robot != nil {
			return robot.who, nil
		}
		return nil, errWrong
	}
	return nil, errForm
}

// intersect cuts scopes down to what who may do.
func (g *Guard) intersect(ctx context.Context, s *state, who *Identity, given []string) ([]access, error) {
	all, size := []access{}, 0
	for _, want := range parseScopes(given) {
		var may []Action
		for _, a := range want.Actions {
			repo := want.Name
			if a == Catalog {
				repo = ""
			}
			ok, err := g.allows(ctx, s, who, repo, a)
			if err != nil {
				return nil, err
			}
			if ok {
				may = append(may, a)
			}
		}
		if want.Type == "registry" && len(may) > 0 {
			may = []Action{"*"} // as it was asked for
		}
		if size += len(want.Name) + 64; len(may) == 0 || size > maxAccess {
			continue
		}
		all = append(all, access{want.Type, want.Name, may})
	}
	return all, nil
}

// parseScopes reads scopes: type:name:action,action, several in one separated by spaces. What is none of ours is left
// out. A name may have colons, so type and actions are what is before the first and after the last.
func parseScopes(given []string) (all []access) {
	n := 0
	for _, several := range given {
		for text := range strings.FieldsSeq(several) {
			if n++; n > maxScopes {
				return all
			}
			if a, ok := parseScope(text); ok {
				all = append(all, a)
			}
		}
	}
	return all
}

func parseScope(text string) (access, bool) {
	first, last := strings.IndexByte(text, ':'), strings.LastIndexByte(text, ':')
	if first == last { // also: there is none
		return access{}, false
	}
	a := access{Type: text[:first], Name: text[first+1 : last]}
	switch actions := text[last+1:]; {
	case a.Type == "registry" && a.Name == "catalog" && actions == "*":
		a.Actions = []Action{Catalog}
	case a.Type == "repository" && plausible(a.Name):
		a.Actions = repositoryActions(actions)
	}
	return a, len(a.Actions) > 0
}

// plausible leaves out what no repository is called. The registry checks names in full.
func plausible(name string) bool {
	return name != "" && len(name) <= maxRepo && !strings.Contains(name, "..") &&
		!strings.ContainsFunc(name, func(c rune) bool {
			return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/')
		})
}

// repositoryActions reads a list of actions; * is all that there are.
func repositoryActions(text string) (all []Action) {
	known := []Action{Pull, Push, Delete}
	for name := range strings.SplitSeq(text, ",") {
		switch a := Action(name); {
		case name == "*":
			return known
		case slices.Contains(known, a) && !slices.Contains(all, a):
			all = append(all, a)
		}
	}
	return all
}

// scopesText is what was granted, for the answer.
func scopesText(all []access) string {
	var texts []string
	for _, a := range all {
		var names []string
		for _, action := range a.Actions {
			names = append(names, string(action))
		}
		texts = append(texts, a.Type+":"+a.Name+":"+strings.Join(names, ","))
	}
	return strings.Join(texts, " ")
}

// refuse answers without a token, in the form of the distribution spec, which is what clients look for here as well.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, err error) {
	code, status := "DENIED", http.StatusForbidden
	switch {
	case errors.Is(err, errMethod):
		code, status = "UNSUPPORTED", http.StatusMethodNotAllowed
	case errors.Is(err, errForm):
		code, status = "UNSUPPORTED", http.StatusBadRequest
	case errors.Is(err, errLarge):
		code, status = "UNSUPPORTED", http.StatusRequestEntityTooLarge
	case errors.Is(err, errTooMany):
	default:
		status = statusOf(err)
		code = map[int]string{http.StatusUnauthorized: "UNAUTHORIZED", http.StatusTooManyRequests: "TOOMANYREQUESTS",
			http.StatusServiceUnavailable: "UNAVAILABLE"}[status]
	}
	switch code {
	case "UNAUTHORIZED":
		w.Header().Set("WWW-Authenticate", basicChallenge)
	case "TOOMANYREQUESTS", "UNAVAILABLE":
		w.Header().Set("Retry-After", "1")
		g.options.Annotate(r.Context(), "err", err.Error())
	}
	g.options.Annotate(r.Context(), "code", code)
	message := err.Error()
	if status == http.StatusServiceUnavailable {
		message = ErrUnavailable.Error() // the cause is for the log
	}
	body, _ := json.Marshal(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body) // a client that has gone is not our concern
}
