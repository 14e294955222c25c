// Package admin is how the commands of an administrator reach a running server: HTTP over a unix socket in the data
// directory, which nobody but the server's own user can open.
//
// # Words
//
//   - job: something that takes its time and tells how far it has come, such as a collection.
//   - event: a line of a job's answer: progress, or its end.
//
// # Invariants
//
//   - Only the owner of the data directory (and root) can connect: the socket has mode 0600 from the moment it exists.
//   - A job's answer ends with an event that says done or error. What ends without one was cut off.
//   - Whoever hangs up ends the job.
//
// # What it does not do
//
// It knows no job by itself: the program names them.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
)

// socket is the socket's name in the data directory.
const socket = "trow.sock"

// Job does something and reports on the way; what it returns is told at the end. Its parameters are those of the
// request's query.
type Job func(ctx context.Context, q url.Values, report func(progress any)) (done any, err error)

// event is one line of an answer.
type event struct {
	Progress any    `json:"progress,omitempty"`
	Done     any    `json:"done,omitempty"`
	Error    string `json:"error,omitempty"`
}

// ServeHTTP runs the job for a POST.
func (j Job) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "a job is begun with POST", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	tell := func(e event) {
		if err := errors.Join(json.NewEncoder(w).Encode(e), http.NewResponseController(w).Flush()); err != nil {
			cancel(fmt.Errorf("nobody listens any more: %w", err))
		}
	}
	done, err := j(ctx, req.URL.Query(), func(progress any) { tell(event{Progress: progress}) })
	if err != nil {
		tell(event{Error: err.Error()})
		return
	}
	tell(event{Done: done})
}

// Listen opens the socket in a data directory that the caller has locked: what an earlier process left there goes.
func Listen(dir string) (net.Listener, error) {
	path, done, err := shortPath(dir)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	defer done()
	if err := os.Remove(filepath.Join(dir, socket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		// Before it is bound, so that there is no moment in which others could connect (Linux, unix(7)).
		cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by the short path, which means nothing then
	return l, nil
}

// shortPath is a name of the socket that fits into an address (107 bytes), however deep the directory lies. It is
// good until done is called.
func shortPath(dir string) (path string, done func(), err error) {
	const most = 107
	if path = filepath.Join(dir, socket); len(path) <= most {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), socket), func() { f.Close() }, nil
}

// Client talks to the server of a data directory.
type Client struct {
	HTTP http.Client // dials the socket, whatever the URL's host
}

// URL is what a Client's URLs begin with.
const URL = "http://trow"

// NewClient makes a client. It connects when it is used.
func NewClient(dir string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, done, err := shortPath(dir)
		if err != nil {
			return nil, err
		}
		defer done()
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("no server runs on the data directory %s; start one, or name its directory with --data-dir", dir)
		}
		return conn, err
	}
	return &Client{HTTP: http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}}}
}

// Run runs a job of the server. progress is called with what it reports, as JSON; done, a pointer, is filled with
// what it returns. Errors: the job's; that no server runs.
func (c *Client) Run(ctx context.Context, job string, q url.Values, progress func(json.RawMessage) error, done any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, URL+"/admin/"+job+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the server says %s: %s", resp.Status, body)
	}
	return follow(resp.Body, progress, done)
}

// plain leaves out the URL, which says nothing to anybody.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// follow reads a job's answer to its end.
func follow(body io.Reader, progress func(json.RawMessage) error, done any) error {
	for in := json.NewDecoder(body); ; {
		var e struct {
			Progress, Done json.RawMessage
			Error          string
		}
		if err := in.Decode(&e); err != nil {
			return fmt.Errorf("the server ended before the job did: %w", err)
		}
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case e.Done != nil:
			return json.Unmarshal(e.Done, done)
		case e.Progress != nil:
			if err := progress(e.Progress); err != nil {
				return err
			}
		}
	}
}
