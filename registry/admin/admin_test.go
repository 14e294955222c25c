package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/registry/admin"
)

// start serves jobs on the socket in dir and returns a client.
func start(t *testing.T, dir string, jobs map[string]admin.Job) *admin.Client {
	t.Helper()
	l, err := admin.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for name, job := range jobs {
		mux.Handle("/admin/"+name, job)
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return admin.NewClient(dir)
}

func count(_ context.Context, q url.Values, report func(any)) (any, error) {
	for i := range 3 {
		report(i)
	}
	if q.Has("fail") {
		return nil, errors.New("it failed")
	}
	return map[string]int{"sum": 3}, nil
}

func TestJobs(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40)) // longer than the address of a socket can be
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{t.TempDir(), deep} {
		c := start(t, dir, map[string]admin.Job{"count": count})
		var reported []string
		progress := func(b json.RawMessage) error { reported = append(reported, string(b)); return nil }
		var done struct{ Sum int }
		err := c.Run(t.Context(), "count", nil, progress, &done)
		if err != nil || done.Sum != 3 || strings.Join(reported, "") != "012" {
			t.Errorf("%v, %v, %v", reported, done, err)
		}
		err = c.Run(t.Context(), "count", url.Values{"fail": {""}}, progress, &done)
		if err == nil || err.Error() != "it failed" {
			t.Errorf("a job that fails: %v", err)
		}
		if err := c.Run(t.Context(), "other", nil, progress, &done); err == nil ||
			!strings.Contains(err.Error(), "404") {
			t.Errorf("a job that does not exist: %v", err)
		}
		fi, err := os.Stat(filepath.Join(dir, "trow.sock"))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("the socket has mode %v, %v", fi.Mode(), err)
		}
		resp, err := c.HTTP.Get(admin.URL + "/admin/count")
		if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("GET: %v, %v", resp, err)
		}
	}
}

func TestListenReplacesTheSocketOfADeadProcess(t *testing.T) {
	dir := t.TempDir()
	if l, err := admin.Listen(dir); err != nil {
		t.Fatal(err)
	} else if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var done struct{ Sum int }
	err := admin.NewClient(dir).Run(t.Context(), "count", nil, nil, &done)
	if err == nil || !strings.Contains(err.Error(), "no server runs") {
		t.Errorf("without a listener: %v", err)
	}
	c := start(t, dir, map[string]admin.Job{"count": count})
	if err := c.Run(t.Context(), "count", nil, func(json.RawMessage) error { return nil }, &done); err != nil {
		t.Error(err)
	}
}

func TestNoServer(t *testing.T) {
	err := admin.NewClient(t.TempDir()).Run(t.Context(), "gc", nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("got %v", err)
	}
	if _, err := admin.Listen(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("opened a socket in a directory that does not exist")
	}
}

func TestAJobEndsWhenItsClientDisconnects(t *testing.T) {
	ended := make(chan error, 1)
	wait := func(ctx context.Context, _ url.Values, report func(any)) (any, error) {
		report("started")
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, ctx.Err()
	}
	c := start(t, t.TempDir(), map[string]admin.Job{"wait": wait})
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Run(ctx, "wait", nil, func(json.RawMessage) error { cancel(); return nil }, nil)
	if err == nil {
		t.Error("an answer without an end was accepted")
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the job continues without a client")
	}
}

// A server that dies during a job, or before it answers, is not taken for the end of the job, and the error says so.
func TestAServerThatDiesDuringAJob(t *testing.T) {
	t.Run("after an answer", func(t *testing.T) {
		serverDies(t, "HTTP/1.1 200 OK\r\n\r\n{\"progress\":1}\n", "before the job ended")
	})
	t.Run("before one", func(t *testing.T) { serverDies(t, "", "before it answered") })
}

// serverDies runs a job on a server that says something and closes the connection.
func serverDies(t *testing.T, says, want string) {
	dir := t.TempDir()
	l, err := admin.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Read(make([]byte, 4096))
		conn.Write([]byte(says))
		conn.(*net.UnixConn).Close()
	}()
	err = admin.NewClient(dir).Run(t.Context(), "gc", nil, func(json.RawMessage) error { return nil }, nil)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}
