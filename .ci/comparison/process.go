package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	readyTime = 2 * time.Minute  // a registry may read its full store first
	stopTime  = 10 * time.Second // after which a server is killed
)

// server is a running peer. It must be stopped.
type server struct {
	peer   *peer
	url    string
	ca     string // file of its CA; "" without TLS
	cmd    *exec.Cmd
	begin  time.Time // start of its process
	ended  chan struct{}
	output string // file
}

// start starts a peer on a store, and waits until it answers.
func (l *laboratory) start(ctx context.Context, p *peer, data string, secure bool) (*server, error) {
	s, err := l.launch(p, data, secure)
	if err != nil {
		return nil, err
	}
	if err := s.await(ctx, "/v2/", func(status int) bool { return status < 500 }); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// launch starts the process of a peer, in a new directory.
func (l *laboratory) launch(p *peer, data string, secure bool) (*server, error) {
	dir, err := os.MkdirTemp(l.dir, "run-"+p.name+"-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	c, err := p.launch(place{dir: dir, data: data, addr: addr, secure: secure, cert: l.cert, key: l.key})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	s := &server{peer: p, url: "http://" + addr, ended: make(chan struct{}), output: filepath.Join(dir, "output")}
	if secure {
		s.url, s.ca = "https://"+addr, l.cert
		if p.name == nameTrow {
			s.ca = filepath.Join(data, "ca.crt")
		}
	}
	return s, s.exec(c)
}

// exec starts the process in its own process group, so that stop can end its workers as well.
func (s *server) exec(c command) error {
	log, err := os.Create(s.output)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.peer.program, c.args...)
	s.cmd.Env = append(os.Environ(), c.env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.begin = time.Now()
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.peer.name, err)
	}
	go func() {
		s.cmd.Wait() // the reason is in its output
		close(s.ended)
	}()
	return nil
}

// freeAddress returns a free port. Another process could take it before the peer does, but most peers cannot be
// handed a socket.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// await sends requests until an answer has a right status. Errors: the server has ended; it is not ready in time.
func (s *server) await(ctx context.Context, path string, right func(status int) bool) error {
	// This only asks over loopback whether the server is up. trow bench verifies certificates.
	client := &http.Client{Timeout: readyTime, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for deadline := s.begin.Add(readyTime); time.Now().Before(deadline); {
		if status, err := head(ctx, client, s.url+path); err == nil && right(status) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return fmt.Errorf("%s ended during its start: %s", s.peer.name, s.lastOutput())
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("%s is not ready after %s: %s", s.peer.name, readyTime, s.lastOutput())
}

func head(ctx context.Context, client *http.Client, url string) (int, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return 0, err
	}
	q.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, */*")
	resp, err := client.Do(q)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// lastOutput returns the last line of the server's output.
func (s *server) lastOutput() string {
	b, err := os.ReadFile(s.output)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return "no output"
	}
	return lastLine(b)
}

// stop ends the server and all processes of its group.
func (s *server) stop() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	group := -s.cmd.Process.Pid
	syscall.Kill(group, syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopTime):
	}
	syscall.Kill(group, syscall.SIGKILL) // ends what is left of the group
	<-s.ended
}

// pid returns the ID of the server's process.
func (s *server) pid() string { return strconv.Itoa(s.cmd.Process.Pid) }

// resident returns the resident memory of the server's process without its children, in bytes.
func (s *server) resident() (int64, error) {
	b, err := os.ReadFile("/proc/" + s.pid() + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("/proc has no VmRSS")
}
