package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxBlob bounds an upload. The only scenario that limit is measured in has blobs of 64 MiB.
const maxBlob = 128 << 20

// buffers fit into the cache of a core: received bytes are hashed and written from there.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// limit shows the minimum that a durable push costs: a server that accepts an upload of a POST and a PUT, and does what
// is needed to make it durable and nothing else.
type limit struct{ dir string }

// serveLimit runs `comparison limit ADDRESS DIRECTORY [CERTIFICATE KEY]` until ctx ends.
func serveLimit(ctx context.Context, args []string, errOut io.Writer) error {
	if len(args) != 2 && len(args) != 4 {
		return errors.New("limit: want ADDRESS DIRECTORY [CERTIFICATE KEY]")
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	server := &http.Server{Handler: limit{args[1]}, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	fmt.Fprintln(errOut, "limit listens on", listener.Addr())
	if len(args) == 4 {
		err = server.ServeTLS(listener, args[2], args[3])
	} else {
		err = server.Serve(listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("limit: %w", err)
}

func (l limit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		w.Header().Set("Location", r.URL.Path+rand.Text())
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		if err := l.receive(http.MaxBytesReader(w, r.Body, maxBlob), r.URL.Query().Get("digest")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		http.Error(w, "limit supports POST and PUT", http.StatusMethodNotAllowed)
	}
}

// receive makes a blob durable under its digest.
func (l limit) receive(body io.Reader, digest string) (err error) {
	f, err := os.CreateTemp(l.dir, "upload")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	if _, err := io.CopyBuffer(io.MultiWriter(f, sum), body, *buffer); err != nil {
		return err
	}
	name := hex.EncodeToString(sum.Sum(nil))
	if digest != "sha256:"+name {
		return errors.New("the content does not match the digest")
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(l.dir, name)); err != nil {
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
