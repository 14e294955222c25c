package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"trow/registry/namespace"
	"trow/registry/ocierror"
)

const (
	// maxScopes bounds how many of the requested scopes are considered. Clients ask for one or two.
	maxScopes = 64
	// maxRepo is the longest name of a repository.
	maxRepo = 255
	// maxTokenRequests bounds how many requests to the token endpoint are served at once. They have places of their
	// own, beside those of the setting max-requests, so that stalled pulls do not prevent logins and logins take no
	// places from pulls. There are 64 more places than requests that can wait to have a password or a token of the
	// cluster verified (maxWaiting each), so that clients that guess cannot take all of them.
	maxTokenRequests = 2*maxWaiting + 64
)

// ServeToken is the token endpoint: GET as in Docker's token specification, and POST as in its OAuth2 one (RFC 6749,
// sections 4.3 and 6). Scopes are reduced to what the identity may do, and never refused: at the next request, a token
// with fewer scopes or none tells a client more than a refusal here.
func (g *Guard) ServeToken(w http.ResponseWriter, r *http.Request) {
	g.options.Annotate(r.Context(), "route", "token")
	r = g.forToken(r)
	w.Header().Set("Cache-Control", "no-store")
	var f form
	if r.Method == http.MethodPost {
		// Before the place is taken, because a client that sends slowly would keep it: Forms bound what is read.
		var err error
		if f, err = g.readForm(w, r); err != nil {
			g.refuse(w, r, err)
			return
		}
	}
	// The place is taken before anything is verified, so that all of that work is bounded.
	if !g.tokenRequests.TryAcquire(1) {
		g.refuse(w, r, errTokenRequests)
		return
	}
	defer g.tokenRequests.Release(1)
	who, scopes, err := g.applicant(w, r, &f)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.options.Annotate(r.Context(), "user", who.Name)
	s, now := g.current(), time.Now()
	all, err := g.intersect(r, s, who, scopes)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	_, host := g.base(r)
	token, expires, err := s.issue(who, host, all, now)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	writeToken(w, token, all, now, expires)
}

// writeToken answers with a token, under both of its names: token (Docker) and access_token (OAuth2). It does not say
// when the token was issued: clients would compare that with their own clocks; without it, they count from now.
func writeToken(w http.ResponseWriter, token string, all []access, now, expires time.Time) {
	body, err := json.Marshal(struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Scope       string `json:"scope"`
	}{token, token, int(expires.Sub(now) / time.Second), scopesText(all)})
	if err != nil {
		panic(err) // strings and a number can be encoded
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // an error means that the client disconnected
}

// Why a request to the token endpoint is refused, beside the errors of an Authorizer.
var (
	errMethod = errors.New("method not allowed; allowed: GET, POST")
	errForm   = errors.New("invalid form; want grant_type=password with username and password, " +
		"or grant_type=refresh_token with a robot's secret as refresh_token")
	errLarge         = errors.New("form too large; want at most 64 KiB")
	errSlow          = errors.New("the form came too slowly; send it again")
	errTokenRequests = errors.New("too many token requests at once; retry")
)

// applicant returns who asks for a token, and the requested scopes. f is the form of a POST.
func (g *Guard) applicant(w http.ResponseWriter, r *http.Request, f *form) (*Identity, []string, error) {
	switch r.Method {
	case http.MethodGet:
		who, err := g.Identify(r)
		// A token gets no token, or it could be renewed for ever.
		if err == nil && who.grant != nil && namespaceOf(r.Context()) != "" {
			return g.certified(r), r.URL.Query()["scope"], nil
		}
		if err == nil && who.grant != nil {
			err = errBadToken
			g.loginFailed(r, err)
		}
		return who, r.URL.Query()["scope"], err
	case http.MethodPost:
		who, err := g.granted(r, f)
		if err != nil && namespaceOf(r.Context()) != "" {
			who, err = g.stranger(r, err)
		}
		if err != nil {
			g.loginFailed(r, err)
			return nil, nil, err
		}
		return g.here(r, who), f.scopes, nil
	}
	w.Header().Set("Allow", "GET, POST")
	return nil, nil, errMethod
}

// granted returns the identity of the credentials in a form.
func (g *Guard) granted(r *http.Request, f *form) (*Identity, error) {
	s := g.current()
	switch f.grant {
	case "password":
		s, err := g.anybody(r.Context(), s, strings.HasPrefix(f.password, SecretPrefix))
		if err != nil {
			return nil, err
		}
		if !s.logins {
			return anonymous, nil
		}
		if len(f.name)+len(f.password) > maxHeader || strings.Contains(f.name, ":") {
			return nil, errWrong
		}
		// The key is that of the same credentials in a header, so that they are verified once for both.
		key := sumOf(&g.secret, schemeBasic, base64.StdEncoding.EncodeToString([]byte(f.name+":"+f.password)))
		if p, ok := s.users.known.get(key, time.Time{}); ok {
			return p.who, nil
		}
		return g.password(r.Context(), s, Address(r), key, f.name, f.password)
	case "refresh_token":
		robot, _, err := g.robot(r.Context(), s, f.secret, time.Now())
		if err != nil {
			return nil, err
		}
		if robot != nil {
			return robot.who, nil
		}
		return nil, errWrong
	}
	return nil, errForm
}

// intersect reduces the requested scopes to what who may do.
func (g *Guard) intersect(r *http.Request, s *state, who *Identity, requested []string) ([]access, error) {
	ctx := r.Context()
	all, size := []access{}, 0
	for _, want := range g.renameScopes(r, parseScopes(requested)) {
		var may []Action
		for _, a := range want.Actions {
			repo := want.Name
			if a == Catalog {
				repo = ""
			}
			ok, err := g.allows(ctx, s, who, repo, a)
			if err == nil && !ok && a == Pull && g.options.Learn != nil && namespace.Within(repo) {
				// A client that asks for the token first has sent no request yet for which anybody has learned it.
				if g.options.Learn(ctx, repo, "", "") == nil {
					ok, err = g.allows(ctx, s, who, repo, a)
				}
			}
			if err != nil {
				return nil, err
			}
			if !ok && a == Push {
				// Docker's clients ask for pull and push alone. A token with create pushes what is new, and the refusal
				// of a move can name the remedy; without it, the client would learn no more than that it needs a login.
				a = Create
				if ok, err = g.allows(ctx, s, who, repo, a); err != nil {
					return nil, err
				}
			}
			if ok && !slices.Contains(may, a) {
				may = append(may, a)
			}
		}
		if want.Type == "registry" && len(may) > 0 {
			may = []Action{"*"} // as in the request
		}
		// 64 is more than the JSON of a scope takes beside its name. Beyond maxAccess the token would not fit a header.
		if size += len(want.Name) + 64; len(may) == 0 || size > maxAccess {
			continue
		}
		all = append(all, access{want.Type, want.Name, may})
	}
	return all, nil
}

// renameScopes replaces the repositories of scopes by their names here, see renamed.
func (g *Guard) renameScopes(r *http.Request, scopes []access) (all []access) {
	for _, a := range scopes {
		names := []string{a.Name}
		if a.Type == "repository" {
			names = g.renamed(r, a.Name)
		}
		for _, name := range names {
			all = append(all, access{a.Type, name, a.Actions})
		}
	}
	return all
}

// parseScopes reads scopes: type:name:action,action, several separated by spaces. It skips those that we do not know. A
// name may contain colons, so the type ends at the first colon and the actions begin after the last.
func parseScopes(requested []string) (all []access) {
	n := 0
	for _, several := range requested {
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
	if first == last { // one colon, or none
		return access{}, false
	}
	a := access{Type: text[:first], Name: text[first+1 : last]}
	// A class, as in repository(plugin), says what a client expects to find; rights do not depend on it.
	if kind, class, ok := strings.Cut(a.Type, "("); ok && strings.HasSuffix(class, ")") {
		a.Type = kind
	}
	switch actions := text[last+1:]; {
	case a.Type == "registry" && a.Name == "catalog" && actions == "*":
		a.Actions = []Action{Catalog}
	case a.Type == "repository" && plausible(a.Name):
		a.Actions = repositoryActions(actions)
	}
	return a, len(a.Actions) > 0
}

// plausible reports whether a name has only characters that names of repositories have. The registry validates names
// in full.
func plausible(name string) bool {
	return name != "" && len(name) <= maxRepo && !strings.Contains(name, "..") &&
		!strings.ContainsFunc(name, func(c rune) bool {
			return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("._-/", c))
		})
}

// repositoryActions reads a list of actions; * stands for all of them: push includes create. Others are skipped.
func repositoryActions(text string) (all []Action) {
	every := []Action{Pull, Push, Delete}
	for name := range strings.SplitSeq(text, ",") {
		switch a := Action(name); {
		case name == "*":
			return every
		case (a == Create || slices.Contains(every, a)) && !slices.Contains(all, a):
			all = append(all, a)
		}
	}
	return all
}

// scopesText returns the granted scopes in the form of the answer.
func scopesText(all []access) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.Type+":"+a.Name+":"+joinActions(a.Actions, ","))
	}
	return strings.Join(texts, " ")
}

// joinActions is strings.Join for actions.
func joinActions(all []Action, separator string) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, string(a))
	}
	return strings.Join(texts, separator)
}

// refuse answers a request to the token endpoint with an error. Clients look for the form of the distribution
// specification here as well.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := refusal(err)
	g.options.Annotate(r.Context(), "code", string(e.Code))
	switch e.Code {
	case ocierror.TooManyRequests, ocierror.Unavailable:
		g.options.Annotate(r.Context(), "err", err.Error())
	}
	ocierror.Write(w, r, e)
}

// refusal returns the answer for an error of the token endpoint.
func refusal(err error) *ocierror.Error {
	e := &ocierror.Error{Code: ocierror.Denied, Message: err.Error()}
	switch {
	case errors.Is(err, errMethod):
		e.Code = ocierror.Unsupported
		return e
	case errors.Is(err, errForm):
		e.Code = ocierror.Unsupported
		return e.With(http.StatusBadRequest)
	case errors.Is(err, errSlow):
		e.Code = ocierror.Unsupported
		return e.With(http.StatusRequestTimeout)
	case errors.Is(err, errLarge):
		e.Code = ocierror.Unsupported
		return e.With(http.StatusRequestEntityTooLarge)
	case errors.Is(err, errGroups):
		return e
	}
	switch statusOf(err) {
	case http.StatusUnauthorized:
		e.Code, e.Header = ocierror.Unauthorized, http.Header{"Www-Authenticate": {basicChallenge}}
	case http.StatusTooManyRequests:
		e.Code, e.Header = ocierror.TooManyRequests, ocierror.RetryAfter(1)
	case http.StatusServiceUnavailable:
		e.Code, e.Header = ocierror.Unavailable, ocierror.RetryAfter(1)
		e.Message, e.Cause = ErrUnavailable.Error(), err
	}
	return e
}
