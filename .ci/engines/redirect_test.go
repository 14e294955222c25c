package engines

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage/storagetest"
)

// TestBlobsAreRedirected pulls as containerd and Docker do, from two networks: with a login for the server, and nothing
// for S3.
func TestBlobsAreRedirected(t *testing.T) {
	t.Parallel()
	g := startGateway(t)
	s := newServer(t, g, "")
	settings, err := os.ReadFile(filepath.Join(s.dir, "trow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// Without names that S3 has as well: by default a server that listens on loopback has those of loopback.
	s.write("trow.yaml", "names: [trow.example]\nblobs-redirect-networks: [127.0.0.1]\n"+string(settings))
	s.start()
	content := string(storagetest.Random(20<<20+5, 7)) // several parts
	d := digest.FromString(content)
	path := "/v2/team/app/blobs/" + d.String()
	s.want(201, "POST", "/v2/team/app/blobs/uploads/?digest="+d.String(), content)

	// from returns a client with an address. Both servers have 127.0.0.1, so this one has a name as well: no client
	// sends its login on to another host.
	from := func(address string) *http.Client {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		transport := &http.Transport{DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			if to == "trow.example:80" {
				to = strings.TrimPrefix(s.url, "http://")
			}
			return dialer.DialContext(ctx, network, to)
		}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	get := func(c *http.Client, url, ranges string) (resp *http.Response, body string) {
		t.Helper()
		header := []string{"Authorization", login()}
		if ranges != "" {
			header = append(header, "Range", ranges)
		}
		resp, b := request(t, c, http.MethodGet, url, nil, header...)
		return resp, string(b)
	}
	at := strings.TrimPrefix(g.endpoint, "http://")
	for address, want := range map[string]string{"127.0.0.1": at, "127.0.0.2": "trow.example"} {
		c := from(address)
		for ranges, tt := range map[string]struct {
			status int
			body   string
		}{
			"":                {200, content},
			"bytes=100-9999":  {206, content[100:10000]},
			"bytes=20971520-": {206, content[20<<20:]},
			"bytes=-7":        {206, content[len(content)-7:]},
		} {
			resp, body := get(c, "http://trow.example"+path, ranges)
			if resp.StatusCode != tt.status || resp.Request.URL.Host != want || body != tt.body {
				t.Errorf("%s, Range %q: %s from %s, %d bytes of %d", address, ranges, resp.Status,
					resp.Request.URL.Host, len(body), len(tt.body))
			}
			if ranges == "" && digest.FromString(body) != d {
				t.Errorf("%s: the bytes have the digest %s", address, digest.FromString(body))
			}
		}
		// A range outside of the blob is the server's to answer.
		if resp, _ := get(c, "http://trow.example"+path, "bytes=99999999-"); resp.StatusCode != 416 ||
			resp.Request.URL.Host != "trow.example" {
			t.Errorf("%s: %s from %s", address, resp.Status, resp.Request.URL.Host)
		}
	}

	// To a host that would get the login as well nobody is sent.
	c := from("127.0.0.1")
	if resp, body := get(c, s.url+path, ""); resp.Request.URL.String() != s.url+path || body != content {
		t.Errorf("with a login for the host of S3: %s from %s", resp.Status, resp.Request.URL)
	}

	// The URL is all that a client has: without its signature it is worth nothing. And nobody reads it in the log.
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, body := get(c, "http://trow.example"+path, "")
	to := resp.Header.Get("Location")
	if resp.StatusCode != 307 || body != "" || resp.Header.Get("Cache-Control") != "no-store" ||
		resp.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(to, "X-Amz-Expires=600&") {
		t.Errorf("%s, headers %v", resp.Status, resp.Header)
	}
	bare, _, _ := strings.Cut(to, "?")
	if resp, err := http.Get(bare); err != nil || resp.StatusCode != 403 {
		t.Errorf("without a signature: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	if resp, _ := get(c, "http://trow.example/v2/team/other/blobs/"+d.String(), ""); resp.StatusCode != 404 {
		t.Errorf("from a repository that does not hold it: %s", resp.Status)
	}
	s.stop(syscall.SIGTERM)
	log := s.log.String()
	if !strings.Contains(log, `"status":307`) || strings.Contains(log, "X-Amz-") || strings.Contains(log, "Signature") {
		t.Error("the log has no line of a redirect, or it has a URL")
	}
}
