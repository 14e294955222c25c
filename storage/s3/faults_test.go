package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/s3"
	"trow/storage/storagetest"
)

func expire(t testing.TB, b storage.Blobs, hours int) int64 {
	t.Helper()
	return must(b.Expire(t.Context(), time.Now().Add(time.Duration(hours)*time.Hour)))(t)
}

// nth makes a hook for the n-th request of an operation, and those after it, up to times.
func nth(op string, n, times int, what fault) func(string, *http.Request) fault {
	var mu sync.Mutex
	seen := 0
	return func(got string, _ *http.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		if got == op {
			if seen++; seen >= n && seen < n+times {
				return what
			}
		}
		return fault{}
	}
}

// writes are the operations of a push, and how many requests of each pushSession makes.
var writes = map[string]int{"PutObject": 2, "CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1,
	"GetObject": 2, "DeleteObject": 2}

// TestEachRequestFailsOnce: nothing is noticed but the time, also if it took effect and its answer was lost.
func TestEachRequestFailsOnce(t *testing.T) {
	data := sessionData()
	for name, what := range map[string]fault{
		"500":         {status: 500, code: "InternalError"},
		"503":         {status: 503, code: "SlowDown"},
		"versitygw":   {status: 409, code: "ExistingObjectIsDirectory"},
		"lost before": {status: 500, lost: true},
		"lost after":  {lost: true},
	} {
		for op, calls := range writes {
			for n := 1; n <= calls; n++ {
				t.Run(fmt.Sprint(name, " ", op, " ", n), func(t *testing.T) {
					t.Parallel()
					f, r := newFake(t), storagetest.NewRecords()
					x, y := shortEngine(t, f, r), shortEngine(t, f, r)
					before := f.count(op)
					f.on(nth(op, n, 1, what))
					wantNil(t, "push", pushSession(t, data, x, y))
					if f.count(op)-before < n {
						t.Errorf("there were no %d requests", n)
					}
					f.on(nil)
					wantBlob(t, x, data)
					orphans := 0
					if op == "CreateMultipartUpload" && what == (fault{lost: true}) {
						orphans = 1 // its ID was in the answer: it is swept after a day
					}
					if keys := f.keys(); len(keys) != 1 || f.openUploads() != orphans {
						t.Errorf("left: %v, and %d multipart uploads", keys, f.openUploads())
					}
				})
			}
		}
	}
}

// TestEachRequestFailsForGood: the push fails, or succeeds with the right bytes, and the next one succeeds.
func TestEachRequestFailsForGood(t *testing.T) {
	data := sessionData()
	for op, calls := range writes {
		for n := 1; n <= calls; n++ {
			for _, what := range []fault{{status: 500, code: "InternalError"}, {lost: true}} {
				t.Run(fmt.Sprint(op, " ", n, " with an effect: ", what.lost), func(t *testing.T) {
					t.Parallel()
					f, r := newFake(t), storagetest.NewRecords()
					x, y := shortEngine(t, f, r), shortEngine(t, f, r)
					f.on(nth(op, n, 8, what))
					err := pushSession(t, data, x, y)
					f.on(nil)
					if err == nil {
						wantBlob(t, y, data)
					} else if !strings.Contains(err.Error(), "S3 bucket bucket at 127.0.0.1:") {
						t.Errorf("the error names no bucket: %v", err)
					}
					expire(t, y, 1)
					wantNil(t, "the next push", pushSession(t, data, y, x))
					wantBlob(t, x, data)
					if n := f.openUploads(); n > 0 && op != "CreateMultipartUpload" {
						t.Errorf("%d multipart uploads are left", f.openUploads())
					}
				})
			}
		}
	}
}

// TestEachChangeOfTheRecordFails: as above, for the Journal.
func TestEachChangeOfTheRecordFails(t *testing.T) {
	data := sessionData()
	for _, before := range []bool{true, false} {
		for n := 1; ; n++ {
			f, r := newFake(t), storagetest.NewRecords()
			x, y := shortEngine(t, f, r), shortEngine(t, f, r)
			calls := 0
			r.Fail(func(_, _ []byte) (bool, error) {
				if calls++; calls == n {
					return before, errors.New("the outcome is unknown")
				}
				return false, nil
			})
			wantNil(t, fmt.Sprint("push with failure ", n), pushSession(t, data, x, y))
			wantBlob(t, y, data)
			for range r.Sessions() {
				t.Errorf("failure %d: the record is left", n)
			}
			if calls < n {
				if n < 8 {
					t.Errorf("only %d changes", calls)
				}
				break
			}
		}
	}
}

// TestALatePartOfAnOldWriter: a part is on its way while another process takes the session over.
func TestALatePartOfAnOldWriter(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := engine(t, f, r), engine(t, f, r)
	data := storagetest.Random(16*mib, 1)
	u := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, data[:5*mib])
	wantNil(t, "Close", u.Close(t.Context()))

	// The old writer sends other bytes, and its request arrives when the new one has sent its own.
	late := make(chan struct{})
	held := make(chan struct{})
	var once sync.Once
	f.on(func(op string, _ *http.Request) fault {
		first := false
		if op == "UploadPart" {
			once.Do(func() { first = true })
		}
		if first {
			close(held)
			return fault{hold: late}
		}
		return fault{}
	})
	old := must(x.Resume(t.Context(), "a", id, 5*mib))(t)
	wrong := storagetest.Random(5*mib, 9)
	write(t, old, wrong)
	<-held
	u = must(y.Resume(t.Context(), "a", id, 5*mib))(t)
	write(t, u, data[5*mib:])
	wantNil(t, "Close", u.Close(t.Context()))
	named, next := s3.Named(must(r.Session(t.Context(), "a", id))(t))
	close(late)
	if err := old.Close(t.Context()); !errors.Is(err, storage.ErrClosed) { // what it has written is not kept
		t.Errorf("Close of the old writer: %v", err)
	}
	if _, err := old.Write([]byte("x")); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Write of the old writer: %v", err)
	}
	if got, _ := s3.Named(must(r.Session(t.Context(), "a", id))(t)); !slices.Equal(got, named) || next < 36 {
		t.Errorf("parts %v, then %v; next %d: the old writer's block of numbers is skipped", named, got, next)
	}
	u = must(y.Resume(t.Context(), "a", id, 16*mib))(t)
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, x, data)
}

// TestAnOldWriterCannotCommit: neither does it complete the object, nor end the session.
func TestAnOldWriterCannotCommit(t *testing.T) {
	for _, n := range []int{mib, 12 * mib} {
		f, r := newFake(t), storagetest.NewRecords()
		x, y := engine(t, f, r), engine(t, f, r)
		data := storagetest.Random(n, 1)
		old := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
		write(t, old, data)
		u := must(y.Resume(t.Context(), "a", id, -1))(t)
		if err := old.Commit(t.Context(), digest.FromBytes(data)); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%d bytes: Commit of the old writer: %v", n, err)
		}
		write(t, u, data[u.Size():])
		wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
		wantBlob(t, x, data)
	}
}

// TestASessionThatIsBeingCompletedIsNotTakenOver: two processes would complete one object.
func TestASessionThatIsBeingCompletedIsNotTakenOver(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := engine(t, f, r), engine(t, f, r)
	data := storagetest.Random(12*mib, 1)
	u := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, data)
	late, held := make(chan struct{}), make(chan struct{})
	f.on(func(op string, _ *http.Request) fault {
		if op == "CompleteMultipartUpload" {
			close(held)
			return fault{hold: late}
		}
		return fault{}
	})
	done := make(chan error)
	go func() { done <- u.Commit(context.WithoutCancel(t.Context()), digest.FromBytes(data)) }()
	<-held
	_, err := y.Resume(t.Context(), "a", id, -1)
	close(late)
	if !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Resume: %v", err)
	}
	wantNil(t, "Commit", <-done)
	wantBlob(t, y, data)
}

// TestAnObjectIsAwaitedThatTheServiceStillMakes: that may take longer than a request may, and the next request is
// answered as if the object were there.
func TestAnObjectIsAwaitedThatTheServiceStillMakes(t *testing.T) {
	for name, fails := range map[string]fault{"made": {}, "fails": {status: 500, code: "InternalError"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, r := newFake(t), storagetest.NewRecords()
			o := options(f, r)
			o.Timeout = 2 * time.Second
			x := storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
			data := storagetest.Random(12*mib, 1)
			u := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
			write(t, u, data)
			working, asked := make(chan struct{}), 0
			end := sync.OnceFunc(func() { close(working) })
			f.on(func(op string, _ *http.Request) fault {
				if op != "CompleteMultipartUpload" {
					return fault{}
				}
				if asked++; asked > 1 {
					time.AfterFunc(100*time.Millisecond, end)
					return fault{}
				}
				what := fails
				what.hold = working
				return what
			})
			err := u.Commit(t.Context(), digest.FromBytes(data))
			end()
			switch {
			case asked != 2:
				t.Errorf("%d requests to complete the object, want 2", asked)
			case fails.status == 0:
				wantNil(t, "Commit", err)
				wantBlob(t, x, data)
			case !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "does not have it"):
				t.Errorf("Commit: %v", err)
			}
		})
	}
}

// TestAServiceThatIsNotReachedWorksOnNothing: a request to make an object of its parts that never came to the service
// is not taken for one that the service works on.
func TestAServiceThatIsNotReachedWorksOnNothing(t *testing.T) {
	for name, fails := range map[string]int64{"once": 1, "for good": 1000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, r := newFake(t), storagetest.NewRecords()
			var left, parts atomic.Int64
			var x storage.Blobs
			dial := func(ctx context.Context, network, address string) (net.Conn, error) {
				if left.Add(-1) < 0 {
					return new(net.Dialer).DialContext(ctx, network, address)
				}
				if fails == 1 {
					_, _ = x.Stat(t.Context(), digest.FromString("x")) // it is answered: the service is not down
				}
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
			}
			warned := make(chan error, 1)
			o := s3.WithDialer(options(f, r), dial)
			o.Warn, o.PartSize = func(err error) { warned <- err }, 6*mib
			x = storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
			must(storagetest.Push(t.Context(), x, []byte("x")))(t)
			f.Config.SetKeepAlivesEnabled(false) // each request has a connection of its own
			f.on(func(op string, _ *http.Request) fault {
				if op == "UploadPart" && parts.Add(1) == 2 { // the last one: the next request completes the object
					left.Store(fails)
				}
				return fault{}
			})
			data := storagetest.Random(12*mib, 1)
			u := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
			write(t, u, data)
			completed, looked := f.count("CompleteMultipartUpload"), f.count("HeadObject")
			err := u.Commit(t.Context(), digest.FromBytes(data))
			completed, looked = f.count("CompleteMultipartUpload")-completed, f.count("HeadObject")-looked
			if fails > 1 {
				if !errors.Is(err, storage.ErrUnavailable) || strings.Contains(err.Error(), "may still") {
					t.Errorf("Commit: %v", err)
				}
				if err := <-warned; !strings.Contains(err.Error(), "dial") {
					t.Errorf("warned of %v", err)
				}
				return
			}
			wantNil(t, "Commit", err)
			wantBlob(t, x, data)
			if completed != 1 || looked != 1 {
				t.Errorf("%d requests to complete the object, %d looks; want 1 and that of the test", completed, looked)
			}
		})
	}
}

// TestALateRemoveHurtsNothing: the collector is stopped within its request, and the content is pushed again meanwhile.
func TestALateRemoveHurtsNothing(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := engine(t, f, r), engine(t, f, r)
	data := storagetest.Random(1000, 1)
	d := must(storagetest.Push(t.Context(), x, data))(t)
	late, held := make(chan struct{}), make(chan struct{})
	f.on(func(op string, _ *http.Request) fault {
		if op == "DeleteObject" {
			close(held)
			return fault{hold: late}
		}
		return fault{}
	})
	place := must(r.Unname(d))(t)
	done := make(chan error)
	go func() { done <- x.Remove(context.WithoutCancel(t.Context()), place) }()
	<-held
	must(storagetest.Push(t.Context(), y, data))(t)
	close(late)
	wantNil(t, "Remove", <-done)
	wantBlob(t, x, data)
	if keys := f.keys(); len(keys) != 1 {
		t.Errorf("left: %v", keys)
	}
}

func TestAReaderGoesOnWhereTheConnectionBroke(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	data := storagetest.Random(9*mib+17, 1)
	d := must(storagetest.Push(t.Context(), b, data))(t)
	f.on(func(op string, _ *http.Request) fault {
		if op == "GetObject" {
			return fault{torn: mib / 2} // each of them
		}
		return fault{}
	})
	wantBlob(t, b, data)
	f.on(nil)

	// Less of it than there was.
	file := must(b.Open(t.Context(), d))(t)
	defer file.Close()
	if _, err := io.ReadFull(file, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	f.truncate(4 * mib)
	_, err := io.ReadAll(file)
	if err == nil || !open(t, options(f, r)).Lost(err) {
		t.Errorf("a reader of an object that became shorter: %v", err)
	}
}

// TestASeekSaysThatTheServiceDoesNotAnswer: a server sends the headers of a part of a blob when it has sought to it.
func TestASeekSaysThatTheServiceDoesNotAnswer(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	data := storagetest.Random(mib, 1)
	d := must(storagetest.Push(t.Context(), b, data))(t)
	for what, want := range map[fault]error{{status: 500, code: "InternalError"}: storage.ErrUnavailable,
		{status: 404, code: "NoSuchKey"}: storage.ErrNotFound} {
		file := must(b.Open(t.Context(), d))(t)
		f.on(func(op string, _ *http.Request) fault {
			if op == "GetObject" {
				return what
			}
			return fault{}
		})
		if _, err := file.Seek(mib/2, io.SeekStart); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what.code, err, want)
		}
		if _, err := file.Seek(0, io.SeekEnd); err != nil {
			t.Errorf("%s: to the end, where nothing is to be read: %v", what.code, err)
		}
		f.on(nil)
		_, err := file.Seek(mib/2, io.SeekStart)
		rest, rerr := io.ReadAll(file)
		if err != nil || rerr != nil || !bytes.Equal(rest, data[mib/2:]) {
			t.Errorf("%s: then %d bytes, %v, %v", what.code, len(rest), err, rerr)
		}
		file.Close()
	}
}

// TestReads: reading in steps of any length, and from anywhere.
func TestReads(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	data := storagetest.Random(mib/4+17, 1)
	file := must(b.Open(t.Context(), must(storagetest.Push(t.Context(), b, data))(t)))(t)
	defer file.Close()
	wantNil(t, "TestReader", iotest.TestReader(struct{ io.ReadSeeker }{file}, data))
}

func (f *fake) truncate(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.objects {
		o.data, o.size = o.data[:n], n
	}
}

func TestErrors(t *testing.T) {
	for code, tt := range map[string]struct {
		status int
		err    error
		text   string
		lost   bool
	}{
		"NoSuchBucket":       {404, nil, "create the bucket", false},
		"NoSuchKey":          {404, storage.ErrNotFound, "", false},
		"AccessDenied":       {403, nil, "check the credentials", false},
		"InvalidAccessKeyId": {403, nil, "check the credentials", false},
		"XAdminUserNotFound": {404, nil, "check the credentials", false},
		"Unknown":            {401, nil, "check the credentials", false},
		"QuotaExceeded":      {403, storage.ErrFull, "", false},
		"Unheard":            {507, storage.ErrFull, "", false},
		"SlowDown":           {503, storage.ErrUnavailable, "", false},
		"InternalError":      {500, storage.ErrUnavailable, "the log of the service", false},
		"InvalidObjectState": {403, nil, "archive", true},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			f, r := newFake(t), storagetest.NewRecords()
			b := open(t, options(f, r))
			r.Name(digest.FromString("x"), "00000001/x")
			f.on(func(string, *http.Request) fault { return fault{status: tt.status, code: code} })
			_, read := storagetest.Read(t.Context(), b, digest.FromString("x"))
			errs := []error{read}
			// The answer to a HEAD has no code, so some codes are known of a GET alone.
			if tt.status != 403 && code != "InternalError" || tt.text == "check the credentials" {
				_, stat := b.Stat(t.Context(), digest.FromString("x"))
				errs = append(errs, stat)
			}
			for _, err := range errs {
				if err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text) ||
					!strings.Contains(err.Error(), "bucket at 127.0.0.1:") || strings.Contains(err.Error(), secret) {
					t.Errorf("%v", err)
				}
				if tt.err == nil && (errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrFull)) {
					t.Errorf("taken for something else: %v", err)
				}
			}
			if b.Lost(read) != tt.lost {
				t.Errorf("Lost(%v) is %v", read, !tt.lost)
			}
		})
	}
}

func TestASilentServiceIsGivenUp(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	o := options(f, r)
	o.Timeout = 200 * time.Millisecond
	b := open(t, o)
	r.Name(digest.FromString("x"), "00000001/x")
	silent := make(chan struct{})
	t.Cleanup(func() { close(silent) })
	f.on(func(string, *http.Request) fault { return fault{hold: silent} })
	begin := time.Now()
	if _, err := b.Stat(t.Context(), digest.FromString("x")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Stat: %v", err)
	}
	// One such request says enough: the next ones do not wait as long.
	if err := b.Answering(); err == nil || !strings.Contains(err.Error(), "was not answered") {
		t.Errorf("the service is said to answer: %v", err)
	}
	asked := f.count("HeadObject")
	for range 50 {
		if _, err := b.Stat(t.Context(), digest.FromString("x")); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("Stat: %v", err)
		}
	}
	if n := f.count("HeadObject") - asked; n > 3+int(time.Since(begin)/s3.OpenFor) {
		t.Errorf("%d of 50 requests were sent to a service that is silent", n)
	}
}

// TestATimeoutOfTheNetworkIsNoCancellation, although it claims to be the context's: the service does not answer.
func TestATimeoutOfTheNetworkIsNoCancellation(t *testing.T) {
	_, timeout := net.DialTimeout("tcp", "127.0.0.1:1", 1)
	if !errors.Is(timeout, context.DeadlineExceeded) {
		t.Fatalf("dialling: %v", timeout)
	}
	if s3.Cancelled(timeout) {
		t.Errorf("%v is taken for a request that was given up", timeout)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{ctx.Err(), &url.Error{Op: "Get", Err: context.DeadlineExceeded}} {
		if !s3.Cancelled(err) {
			t.Errorf("%v is taken for a request without an answer", err)
		}
	}
}

// TestASlowPartIsNoSilence: while others are answered, one request that is not does not stop them.
func TestASlowPartIsNoSilence(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	o := options(f, r)
	o.Timeout = 2 * time.Second
	b := open(t, o)
	for _, name := range []string{"x", "y"} {
		must(storagetest.Push(t.Context(), storagetest.PlacedBlobs{Placed: b, Records: r}, []byte(name)))(t)
	}
	silent := make(chan struct{})
	t.Cleanup(func() { close(silent) })
	slow := must(r.Place(t.Context(), digest.FromString("x")))(t)
	f.on(func(_ string, req *http.Request) fault {
		if strings.HasSuffix(req.URL.Path, slow) {
			return fault{hold: silent}
		}
		return fault{}
	})
	done := make(chan error)
	go func() { _, err := b.Stat(t.Context(), digest.FromString("x")); done <- err }()
	for {
		if _, err := b.Stat(t.Context(), digest.FromString("y")); err != nil {
			t.Fatalf("Stat: %v", err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("Stat: %v", err)
			}
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestTheCircuitOpensAndCloses(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	warned := make(chan error, 10)
	o := options(f, r)
	o.Warn = func(err error) { warned <- err }
	b := open(t, o)
	must(storagetest.Push(t.Context(), storagetest.PlacedBlobs{Placed: b, Records: r}, []byte("x")))(t)
	d := digest.FromString("x")
	f.on(func(string, *http.Request) fault { return fault{lost: true} })
	for range s3.FailuresToOpen {
		if _, err := b.Stat(t.Context(), d); err == nil {
			t.Fatal("no error")
		}
	}
	if err := <-warned; !strings.Contains(err.Error(), "in a row") {
		t.Errorf("warned of %v", err)
	}
	before := f.count("HeadObject")
	for range 50 {
		if _, err := b.Stat(t.Context(), d); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("Stat: %v", err)
		}
	}
	if n := f.count("HeadObject") - before; n > 10 {
		t.Errorf("%d requests reached the service while the circuit was open", n)
	}
	f.on(nil)
	for end := time.Now().Add(time.Minute); ; {
		_, err := b.Stat(t.Context(), d)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it stays open: %v", err)
		}
		time.Sleep(s3.OpenFor / 10) // not synchronisation: the loop ends by itself
	}
	if len(warned) > 0 {
		t.Errorf("warned again: %v", <-warned)
	}
}

func TestMemoryOfManyUploads(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	f.keep = 64 << 10
	o := options(f, r)
	o.Memory = 64 * mib
	b := open(t, o)
	const uploads, size = 100, 6 * mib
	block := storagetest.Random(32<<10, 1)
	var wg sync.WaitGroup
	heap := storagetest.WatchHeap()
	h := digest.SHA256.Digester()
	for range size / len(block) {
		_, _ = h.Hash().Write(block)
	}
	for range uploads {
		wg.Go(func() {
			u, err := b.Create(t.Context(), "a", digest.SHA256)
			for range size / len(block) {
				if err == nil {
					_, err = u.Write(block)
				}
			}
			if err == nil {
				err = u.Commit(t.Context(), h.Digest())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	most := heap()
	t.Logf("%d uploads of %d MiB at once with 64 MiB for parts: %d MiB of heap at most", uploads, size/mib, most/mib)
	if most > 100*mib {
		t.Errorf("%d MiB of heap", most/mib)
	}
}

func TestAnUploadThatWaitsForMemoryEndsWithItsRequest(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	o := options(f, r)
	o.Memory = 10 * mib
	b := open(t, o)
	var holders []storage.Upload
	for range 2 {
		u := must(b.Create(t.Context(), "a", digest.SHA256))(t)
		write(t, u, storagetest.Random(mib, 1)) // a part each
		holders = append(holders, u)
	}
	ctx, cancel := context.WithCancel(t.Context())
	u := must(b.CreateAs(ctx, "a", id, digest.SHA256))(t)
	small := storagetest.Random(64<<10, 2)
	write(t, u, small) // does not wait
	waits := make(chan error)
	go func() { _, err := u.Write([]byte("more")); waits <- err }()
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("Write: %v", err)
	}
	wantNil(t, "Close", u.Close(t.Context())) // what was received is kept
	wantNil(t, "Cancel", holders[0].Cancel(t.Context()))
	u = must(b.Resume(t.Context(), "a", id, int64(len(small))))(t)
	write(t, u, []byte("more"))
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(append(small, "more"...))))
}

func TestExpireAbortsWhatNoRecordNames(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := open(t, options(f, r))
	u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, storagetest.Random(6*mib, 1))
	wantNil(t, "Close", u.Close(t.Context()))
	orphan := must(b.Create(t.Context(), "a", digest.SHA256))(t)
	write(t, orphan, storagetest.Random(6*mib, 1))
	for range 2 {
		b.SweepAgain()
		expire(t, b, -1)
		if n := f.openUploads(); n != 2 {
			t.Fatalf("%d multipart uploads, want 2: they are young", n)
		}
	}
	f.age(48 * time.Hour)
	b.SweepAgain()
	expire(t, b, -1)
	if n := f.openUploads(); n != 1 {
		t.Errorf("%d multipart uploads, want the one that has a record", n)
	}
	// A record of another version: it may name any of them, and is left alone.
	wantNil(t, "SetSession", r.SetSession(t.Context(), "b", id, nil, []byte{99, 1, 2}))
	write(t, must(b.Create(t.Context(), "a", digest.SHA256))(t), storagetest.Random(6*mib, 1))
	f.age(48 * time.Hour)
	b.SweepAgain()
	expire(t, b, -1)
	if n := f.openUploads(); n != 2 {
		t.Errorf("%d multipart uploads, want 2", n)
	}
	expire(t, b, 1)
	if _, err := r.Session(t.Context(), "b", id); err != nil {
		t.Errorf("the record of another version: %v", err)
	}
	if keys := f.keys(); f.openUploads() != 0 || len(keys) != 0 {
		t.Errorf("left: %v, and %d multipart uploads", keys, f.openUploads())
	}
}

func (f *fake) age(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range f.uploads {
		u.began = u.began.Add(-d)
	}
}

func TestTheProbeNamesWhatTheServiceLacks(t *testing.T) {
	for op, want := range map[string]string{
		"HeadObject":              "look an object up",
		"GetObject":               "read a range",
		"ListObjectsV2":           "list objects",
		"CompleteMultipartUpload": "complete a multipart upload",
		"ListMultipartUploads":    "list and abort a multipart upload",
		"AbortMultipartUpload":    "list and abort a multipart upload",
		"DeleteObjects":           "delete objects",
	} {
		f := newFake(t)
		f.on(func(got string, r *http.Request) fault {
			if got == op && !(op == "HeadObject" && strings.Contains(r.URL.Path, "-missing")) {
				return fault{status: 403, code: "AccessDenied"}
			}
			return fault{}
		})
		_, err := s3.Open(t.Context(), options(f, storagetest.NewRecords()))
		if err == nil || !strings.Contains(err.Error(), "the service cannot "+want) {
			t.Errorf("without %s: %v", op, err)
		}
	}
	f := newFake(t)
	f.on(func(op string, r *http.Request) fault { // a policy without s3:ListBucket
		if strings.HasSuffix(r.URL.Path, "-missing") {
			return fault{status: 403, code: "AccessDenied"}
		}
		return fault{}
	})
	if _, err := s3.Open(t.Context(), options(f, storagetest.NewRecords())); err == nil ||
		!strings.Contains(err.Error(), "s3:ListBucket") {
		t.Errorf("without the right to list: %v", err)
	}
	f = newFake(t)
	f.versioned = true
	var warned bytes.Buffer
	o := options(f, storagetest.NewRecords())
	o.Warn = func(err error) { fmt.Fprintln(&warned, err) }
	open(t, o)
	if !strings.Contains(warned.String(), "keeps versions") {
		t.Errorf("a versioned bucket: %q", warned.String())
	}
	f.versioned, f.wholeKeys = false, true
	warned.Reset()
	open(t, o)
	if !strings.Contains(warned.String(), "does not list multipart uploads below a prefix") {
		t.Errorf("lists by whole keys: %q", warned.String())
	}
	o.Endpoint = "http://" + address(t)
	if _, err := s3.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nothing listens: %v", err)
	}
	if keys := f.keys(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
}

// TestWritersFightForASession: requests of several clients at several processes, each of which believes that the
// session is its own. Whatever is acknowledged has the right bytes.
func TestWritersFightForASession(t *testing.T) {
	data := storagetest.Random(9*short+100, 1)
	d := digest.FromBytes(data)
	for round := range 5 {
		f, r := newFake(t), storagetest.NewRecords()
		all := []storagetest.PlacedBlobs{shortEngine(t, f, r), shortEngine(t, f, r), shortEngine(t, f, r)}
		var held sync.WaitGroup
		f.on(func(op string, _ *http.Request) fault {
			if rand.IntN(4) > 0 {
				return fault{}
			}
			hold := make(chan struct{})
			held.Go(func() { time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond); close(hold) })
			return fault{hold: hold, lost: rand.IntN(3) == 0}
		})
		wantNil(t, "Close", must(all[0].CreateAs(t.Context(), "a", id, digest.SHA256))(t).Close(t.Context()))
		var committed atomic.Int32
		var wg sync.WaitGroup
		for n := range 4 {
			wg.Go(func() {
				for committed.Load() == 0 && t.Context().Err() == nil {
					if fight(t, all[rand.IntN(len(all))], data, n%2 == 0) {
						committed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		f.on(nil)
		held.Wait()
		if committed.Load() != 1 {
			t.Errorf("round %d: %d commits succeeded", round, committed.Load())
		}
		for _, b := range all {
			wantBlob(t, b, data)
		}
		if _, err := all[0].Stat(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
}

// fight is one request: it goes on with the session, and reports whether it has committed it. A session that was
// dropped is begun again.
func fight(t *testing.T, b storagetest.PlacedBlobs, data []byte, slow bool) bool {
	u, err := b.Resume(t.Context(), "a", id, -1)
	if errors.Is(err, storage.ErrNotFound) {
		u, err = b.CreateAs(t.Context(), "a", id, digest.SHA256)
	}
	if err != nil {
		return false
	}
	next := data[u.Size():]
	next = next[:min(len(next), 1+rand.IntN(4*short))]
	for piece := range slices.Chunk(next, 10_000) {
		if slow {
			runtime.Gosched()
		}
		if _, err := u.Write(piece); err != nil {
			_ = u.Close(t.Context())
			return false
		}
	}
	if u.Size() < int64(len(data)) {
		_ = u.Close(t.Context())
		return false
	}
	return u.Commit(t.Context(), digest.FromBytes(data)) == nil
}
