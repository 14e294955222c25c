package cache

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// tokenServer gives tokens as Distribution accepts them (its documentation, "Token Authentication Implementation"), to
// the login of the origin alone.
type tokenServer struct {
	url   string
	key   *ecdsa.PrivateKey
	chain string // x5c
}

func newTokenServer(t *testing.T, rootFile string) *tokenServer {
	t.Helper()
	s := &tokenServer{}
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	shape := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, shape, shape, &s.key.PublicKey, s.key)
	if err != nil {
		t.Fatal(err)
	}
	s.chain = base64.StdEncoding.EncodeToString(der)
	write(t, rootFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	s.url = "http://" + l.Addr().String()
	return s
}

// ServeHTTP answers GET and POST of /token.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, ok := req.BasicAuth()
	if !ok {
		user, password = req.FormValue("username"), req.FormValue("password")
	}
	if user != originUser || password != originPassword {
		http.Error(w, "the login is wrong", http.StatusUnauthorized)
		return
	}
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	given := []access{}
	scopes := append(req.URL.Query()["scope"], req.PostForm["scope"]...)
	for scope := range strings.FieldsSeq(strings.Join(scopes, " ")) {
		if part := strings.Split(scope, ":"); len(part) == 3 {
			given = append(given, access{part[0], part[1], strings.Split(part[2], ",")})
		}
	}
	now := time.Now().Unix()
	token, err := s.sign(map[string]any{"iss": "lab", "sub": user, "aud": "origin", "exp": now + 300, "nbf": now - 60,
		"iat": now, "jti": rand.Text(), "access": given})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// sign makes a JSON Web Token (RFC 7519) with ES256.
func (s *tokenServer) sign(claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{s.chain}})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode(header) + "." + encode(body)
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)
	return text + "." + encode(signature), nil
}
