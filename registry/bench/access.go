package bench

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"trow/registry/redact"
)

// access obtains the credentials that the server asks for: none, a user's password (RFC 7617), or tokens of a token
// server (Distribution's token authentication). It is safe for concurrent use.
//
// The rest of the package uses newAccess, header, answer, refused and loginError; everything else in this file is
// about the protocol.
type access struct {
	target         *target
	user, password string
	client         *http.Client
	tokens         atomic.Bool // whether the server uses tokens

	mu     sync.RWMutex      // guards what follows
	basic  string            // the Authorization field for all requests, if the server does not use tokens
	grants map[string]*grant // by repository
}

// grant is a token with the scopes it was requested for: all that were ever needed in a repository.
type grant struct {
	header string
	scopes map[string][]string // actions by type:name
}

// loginError is a login that failed. Its text is complete.
type loginError struct{ text string }

func (e *loginError) Error() string { return e.text }

func (a *access) errorf(format string, args ...any) error {
	return &loginError{a.target.url + ": " + fmt.Sprintf(format, args...)}
}

// maxGrants bounds the tokens that are kept: the scenario mount needs one for each repository that it creates.
const maxGrants = 10_000

func newAccess(t *target, user, password string) *access {
	transport := &http.Transport{TLSClientConfig: t.tls.Clone(), TLSHandshakeTimeout: dialTimeout}
	return &access{target: t, user: user, password: password, grants: map[string]*grant{},
		client: &http.Client{Transport: transport, Timeout: dialTimeout}}
}

// header returns the Authorization field for a repository, "" for none.
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

// refused returns the error for a login that the server does not accept.
func (a *access) refused() error {
	if a.user == "" {
		return a.errorf("login required; set --user and --password-file")
	}
	return a.errorf("login refused for user %.60q; check the password, and what the user may do", a.user)
}

// answer obtains the credentials that the challenge of a 401 asks for. used is the header that was refused. Errors: a
// *loginError.
func (a *access) answer(ctx context.Context, repo, challenges, used string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.grants[repo]; g != nil && g.header != used {
		return nil // another connection has obtained one meanwhile
	}
	if params, ok := challenge(challenges, "bearer"); ok {
		return a.fetch(ctx, repo, params)
	}
	if _, ok := challenge(challenges, "basic"); !ok {
		return a.errorf("the server wants a login that is neither Basic nor Bearer")
	}
	if a.user == "" || used != "" {
		return a.refused()
	}
	a.basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(a.user+":"+a.password))
	return nil
}

// fetch requests a token for the scopes of a challenge and for those of the token before. It holds the lock meanwhile:
// connections that wait for it would request the same token.
func (a *access) fetch(ctx context.Context, repo string, params map[string]string) error {
	if len(a.grants) >= maxGrants {
		clear(a.grants)
	}
	g := &grant{scopes: map[string][]string{}}
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

// token requests a token of the realm. If the registry uses TLS, the password is not sent without TLS.
func (a *access) token(ctx context.Context, params map[string]string, scopes map[string][]string) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" ||
		realm.Scheme != "https" && (realm.Scheme != "http" || a.target.tls != nil) {
		return "", a.errorf("the address of the token server, %.100q, is not https; the password is not sent to it",
			params["realm"])
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
		return "", a.errorf("token server: %v", redact.URL(err))
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
		return "", a.errorf("the token server answered with status %d and without a token", resp.StatusCode)
	}
	return token, nil
}

// challenge returns the parameters of one scheme in WWW-Authenticate (RFC 9110, 11.6.1), and whether the scheme is
// there.
func challenge(text, scheme string) (map[string]string, bool) {
	params, current, found := map[string]string{}, "", false
	for text = strings.TrimLeft(text, ", "); text != ""; text = strings.TrimLeft(text, ", ") {
		end := strings.IndexAny(text, "= ,")
		if end < 0 || text[end] != '=' { // the name of a scheme
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

// parameter returns a value, quoted or not, and the text after it.
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
