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
	readyTime = 2 * time.Minute  // a registry with a full store may walk it first
	stopTime  = 10 * time.Second // after which a server is killed
)

// server is a peer that runs. Stop it.
type server struct {
	peer   *peer
	url    string
	ca     string // file; "" without TLS
	cmd    *exec.Cmd
	begin  time.Time // of its process
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

// launch starts a peer's process, in a directory of its own.
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

// exec starts the process in a group of its own, so that its workers end with it.
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
		s.cmd.Wait() // how it ended shows in its output
		close(s.ended)
	}()
	return nil
}

// freeAddress is a port that the kernel gives. It is free again when the peer takes it, as few can be handed a socket.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// await asks until the answer is right. Errors: that the server has ended, or is not ready in time.
func (s *server) await(ctx context.Context, path string, right func(status int) bool) error {
	// Whether it is up is all that is asked here, over loopback; what is measured checks certificates.
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
			return fmt.Errorf("%s ended at its start: %s", s.peer.name, s.lastWords())
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("%s is not ready after %s: %s", s.peer.name, readyTime, s.lastWords())
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

// lastWords is the end of what the server has written.
func (s *server) lastWords() string {
	b, err := os.ReadFile(s.output)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return "it has written nothing"
	}
	return lastLine(b)
}

// stop ends the server and all that belongs to it.
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
	syscall.Kill(group, syscall.SIGKILL) // what is left of the group; mostly nothing
	<-s.ended
}

// pid is the server's process, whose children belong to it.
func (s *server) pid() string { return strconv.Itoa(s.cmd.Process.Pid) }

// resident is the memory in use by the server's process, without its children, in bytes.
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
	return 0, errors.New("/proc tells no VmRSS")
}
