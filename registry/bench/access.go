package bench

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// access is what the server wants to see before it lets anybody in: nothing, a user's password (RFC 7617), or tokens
// that another server gives for that (Distribution's token authentication). Safe for concurrent use.
type access struct {
	target         *target
	user, password string
	client         *http.Client
	tokens         atomic.Bool // whether there are tokens to be looked up

	mu     sync.RWMutex
	basic  string              // the Authorization field for everything
	grants map[string]*granted // by repository
}

// granted is a token, and what it was asked for: all that was ever needed in a repository.
type granted struct {
	header string
	scopes map[string][]string // actions by type:name
}

// loginError is a whole sentence about a login.
type loginError struct{ text string }

func (e *loginError) Error() string { return e.text }

func (a *access) errorf(format string, args ...any) error {
	return &loginError{a.target.url + ": " + fmt.Sprintf(format, args...)}
}

// maxGrants bounds what is kept of tokens: the scenario mount needs one for each repository that it makes.
const maxGrants = 10_000

func newAccess(t *target, user, password string) *access {
	transport := &http.Transport{TLSClientConfig: t.tls.Clone(), TLSHandshakeTimeout: dialTimeout}
	return &access{target: t, user: user, password: password, grants: map[string]*granted{},
		client: &http.Client{Transport: transport, Timeout: dialTimeout}}
}

// header is the Authorization field for a repository, "" for none.
func (a *access) header(repo string) string {
	if !a.tokens.Load() {
		a.mu.RLock()
		defer a.mu.RUnlock()
		return a.basic
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if g := a.grants[repo]; g != nil {
		return g.header
	}
	return ""
}

// refused tells that the login was of no use.
func (a *access) refused() error {
	if a.user == "" {
		return a.errorf("it wants a login; give --user and --password-file")
	}
	return a.errorf("it refuses user %.60q; check the user, the password's file, and what that user may do", a.user)
}

// answer does what a 401 asks for. used is the header that was refused. Errors: that there is no login, or that the
// server of tokens gives none.
func (a *access) answer(ctx context.Context, repo, challenges, used string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.grants[repo]; g != nil && g.header != used {
		return nil // another connection has
	}
	if params, ok := challenge(challenges, "bearer"); ok {
		return a.fetch(ctx, repo, params)
	}
	if _, ok := challenge(challenges, "basic"); !ok {
		return a.errorf("it wants a login of a kind that is neither Basic nor Bearer")
	}
	if a.user == "" || used != "" {
		return a.refused()
	}
	a.basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(a.user+":"+a.password))
	return nil
}

// fetch gets a token for what a challenge names, and for what was asked before. The lock is held: who waits for it
// would fetch the same.
func (a *access) fetch(ctx context.Context, repo string, params map[string]string) error {
	if len(a.grants) >= maxGrants {
		clear(a.grants)
	}
	g := &granted{scopes: map[string][]string{}}
	if old := a.grants[repo]; old != nil {
		g.scopes = old.scopes
	}
	for _, scope := range strings.Fields(params["scope"]) {
		if i := strings.LastIndexByte(scope, ':'); i > 0 {
			for _, action := range strings.Split(scope[i+1:], ",") {
				if !slices.Contains(g.scopes[scope[:i]], action) {
					g.scopes[scope[:i]] = append(g.scopes[scope[:i]], action)
				}
			}
		}
	}
	token, err := a.token(ctx, params, g.scopes)
	if err != nil {
		return err
	}
	g.header = "Bearer " + token
	a.grants[repo] = g
	a.tokens.Store(true)
	return nil
}

// token asks the realm. The password does not leave TLS if the registry speaks it.
func (a *access) token(ctx context.Context, params map[string]string, scopes map[string][]string) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && (realm.Scheme != "http" || a.target.tls != nil) {
		return "", a.errorf("its server of tokens, %.100q, is no https address, and gets no password", params["realm"])
	}
	q := realm.Query()
	if params["service"] != "" {
		q.Set("service", params["service"])
	}
	for what, actions := range scopes {
		q.Add("scope", what+":"+strings.Join(actions, ","))
	}
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return "", err
	}
	if a.user != "" {
		req.SetBasicAuth(a.user, a.password)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return "", a.errorf("its server of tokens: %v", withoutURL(err))
	}
	defer resp.Body.Close()
	return a.readToken(resp)
}

func (a *access) readToken(resp *http.Response) (string, error) {
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return "", a.refused()
	}
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body)
	token := body.Token
	if token == "" {
		token = body.AccessToken
	}
	if resp.StatusCode != http.StatusOK || err != nil || token == "" || strings.ContainsAny(token, "\r\n") {
		return "", a.errorf("its server of tokens answers with status %d and without a token", resp.StatusCode)
	}
	return token, nil
}

func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// challenge finds the parameters of one scheme in WWW-Authenticate (RFC 9110, 11.6.1).
func challenge(text, scheme string) (map[string]string, bool) {
	params, current, found := map[string]string{}, "", false
	for text = strings.TrimLeft(text, ", "); text != ""; text = strings.TrimLeft(text, ", ") {
		end := strings.IndexAny(text, "= ,")
		if end < 0 || text[end] != '=' { // a scheme's name
			if end < 0 {
				end = len(text)
			}
			current, text = strings.ToLower(text[:end]), text[end:]
			found = found || current == scheme
			continue
		}
		name := strings.ToLower(text[:end])
		var value string
		value, text = parameter(text[end+1:])
		if current == scheme {
			params[name] = value
		}
	}
	return params, found
}

// parameter cuts a value, quoted or not, off what follows.
func parameter(text string) (value, rest string) {
	if !strings.HasPrefix(text, `"`) {
		if end := strings.IndexAny(text, ", "); end >= 0 {
			return text[:end], text[end:]
		}
		return text, ""
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '"':
			return b.String(), text[i+1:]
		case text[i] == '\\' && i+1 < len(text):
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String(), ""
}
