// Package admin connects the commands of an administrator to a running server: HTTP over a unix socket in the data
// directory, which only the user of the server can open, or over TLS with a login.
//
// # Words
//
//   - job: work of the server that can take long and reports its progress, such as a collection.
//   - event: one line of the answer to a job: progress, or the end.
//
// # Invariants
//
//   - Only the owner of the data directory (and root) can connect: the socket has mode 0600 from the moment it exists.
//   - The answer to a job ends with an event that has done or error. An answer without one was cut off.
//   - A job ends when its client disconnects.
//   - The events' JSON stays as it is: an older client works with a newer server, and the other way round.
//
// # What it does not do
//
// It defines no jobs, and it does not route requests: the program does both.
package admin

import (
	"bytes"
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

	"trow/registry/redact"
)

// socket is the socket's name in the data directory.
const socket = "trow.sock"

// Job is the work of the server for one request. It gets the query of the URL, calls report with its progress, as often
// as it likes, and returns its outcome. Both are sent as JSON. ctx is done when the client has disconnected.
type Job func(ctx context.Context, q url.Values, report func(progress any)) (done any, err error)

// event is one line of an answer: JSON with exactly one of the fields.
type event struct {
	Progress any    `json:"progress,omitempty"`
	Done     any    `json:"done,omitempty"`
	Error    string `json:"error,omitempty"`
}

// ServeHTTP runs the job for a POST.
func (j Job) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed; allowed: POST", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false) // people read it
	send := func(e event) {
		// Each event is flushed, so that the client sees the progress, and the job a client that has disconnected.
		if err := errors.Join(out.Encode(e), http.NewResponseController(w).Flush()); err != nil {
			cancel(fmt.Errorf("the client has disconnected: %w", err))
		}
	}
	done, err := j(ctx, req.URL.Query(), func(progress any) { send(event{Progress: progress}) })
	if err != nil {
		send(event{Error: err.Error()})
		return
	}
	send(event{Done: done})
}

// Listen opens the socket in a data directory. The caller must have locked the directory, because Listen replaces a
// socket that it finds there: that of an earlier process. The caller closes the listener.
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
		// The mode is set before bind creates the file, so that others can never connect (Linux, unix(7)).
		cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	// Close would remove the socket by its short path, which may name another file by then.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// Exists reports whether there is a socket in a data directory, which a server may have left.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, socket))
	return err == nil
}

// shortPath returns a path of the socket that fits into an address, however long the path of the directory is. It is
// valid until done is called.
func shortPath(dir string) (path string, done func(), err error) {
	const max = 107 // bytes: sun_path without its final NUL (Linux, unix(7))
	if path = filepath.Join(dir, socket); len(path) <= max {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), socket), func() { f.Close() }, nil
}

// Client is a client of a running server.
type Client struct {
	HTTP http.Client // connects to the socket, whatever the host of the URL is; unused if remote is set

	url    string
	remote Doer // nil: HTTP
}

// Doer sends a request with the login that it needs.
type Doer interface {
	Do(*http.Request) (*http.Response, error)
}

// NewRemote returns a client of the server at a URL (scheme and host), which it reaches by way of do.
func NewRemote(url string, do Doer) *Client { return &Client{url: url, remote: do} }

// URL is the scheme and host of the URLs for a Client. The host is never looked up.
const URL = "http://trow"

// NewClient returns a client of the server that uses dir. It connects when it is used.
func NewClient(dir string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, done, err := shortPath(dir)
		if err != nil {
			return nil, err
		}
		defer done()
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("no server runs on the data directory %s; "+
				"start one, set --data-dir to the directory of a running one, or name one with --server", dir)
		}
		return conn, err
	}
	return &Client{url: URL, HTTP: http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}}}
}

// Run runs a job of the server and waits for its end. It calls progress with the JSON of each report, and decodes the
// outcome into done, which is a pointer. Errors: the job's; progress's; that no server runs; that the server ended
// before the job did.
func (c *Client) Run(ctx context.Context, job string, q url.Values,
	progress func(json.RawMessage) error, done any) error {
	resp, err := c.ask(ctx, http.MethodPost, job, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return follow(resp.Body, progress, done)
}

// Get opens a list of the server, such as repositories. The caller closes it. Errors: *Status; that no server runs.
func (c *Client) Get(ctx context.Context, list string, q url.Values) (io.ReadCloser, error) {
	resp, err := c.ask(ctx, http.MethodGet, list, q)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Status is an answer that is not a success.
type Status struct {
	Code int
	text string
}

func (s *Status) Error() string { return "server: " + s.text }

// HTTPStatus is the status of the answer.
func (s *Status) HTTPStatus() int { return s.Code }

// Unavailable reports whether err says that the server has no administration, or not for this login.
func Unavailable(err error) bool {
	var s interface{ HTTPStatus() int } // also that of a client that has no login to send
	if !errors.As(err, &s) {
		return false
	}
	switch s.HTTPStatus() {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}

// JobError is the error with which a job has ended, and not one of the connection to the server.
type JobError string

func (e JobError) Error() string { return string(e) }

// ask sends a request and returns an answer with status 200.
func (c *Client) ask(ctx context.Context, method, path string, q url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+"/admin/"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	do := c.remote
	if do == nil {
		do = &c.HTTP
	}
	resp, err := do.Do(req)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil, fmt.Errorf("the server closed the connection before it answered; its log says why: %w",
			redact.URL(err))
	}
	if err != nil {
		return nil, redact.URL(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	text := fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(body))
	var oci struct {
		Errors []struct{ Code, Message string }
	} // of another registry
	if json.Unmarshal(body, &oci) == nil && len(oci.Errors) > 0 {
		text = fmt.Sprintf("%s: %s: %s", resp.Status, oci.Errors[0].Code, oci.Errors[0].Message)
	}
	switch {
	case c.remote != nil && resp.StatusCode == http.StatusUnauthorized:
		text += "; log in: docker login, or --user and --password-file"
	case c.remote != nil && resp.StatusCode == http.StatusNotFound:
		text += "; is " + c.url + " a Trow server?"
	}
	return nil, &Status{resp.StatusCode, text}
}

// follow reads the events of a job to the last.
func follow(body io.Reader, progress func(json.RawMessage) error, done any) error {
	for in := json.NewDecoder(body); ; {
		var e struct {
			Progress, Done json.RawMessage
			Error          string
		}
		if err := in.Decode(&e); err != nil {
			return fmt.Errorf("the server closed the connection before the job ended: %w", err)
		}
		switch {
		case e.Error != "":
			return JobError(e.Error)
		case e.Done != nil:
			return json.Unmarshal(e.Done, done)
		case e.Progress != nil:
			if err := progress(e.Progress); err != nil {
				return err
			}
		}
	}
}
