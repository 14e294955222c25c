package s3_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/s3"
	"trow/storage/storagetest"
)

// secret is what no error may show.
const secret = "trow-test-secret"

func TestMain(m *testing.M) {
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": "trow-test", "AWS_SECRET_ACCESS_KEY": secret} {
		if err := os.Setenv(k, v); err != nil {
			panic(err)
		}
	}
	s3.DoNotPause()
	os.Exit(m.Run())
}

const (
	id  = "01234567-89ab-4def-8123-456789abcdef"
	mib = 1 << 20
)

// options are for a fake. Parts are as short as S3 allows.
func options(f *fake, r storage.Records) s3.Options {
	return s3.Options{Endpoint: f.URL, Bucket: "bucket", Prefix: "team/trow", PathStyle: true, PartSize: 5 * mib,
		Records: r}
}

func open(t testing.TB, o s3.Options) *s3.Blobs {
	t.Helper()
	b, err := s3.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// engine is an engine over a fake, with what the Index would do.
func engine(t testing.TB, f *fake, r *storagetest.Records) storagetest.PlacedBlobs {
	t.Helper()
	return storagetest.PlacedBlobs{Placed: open(t, options(f, r)), Records: r}
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func write(t testing.TB, u storage.Upload, p []byte) {
	t.Helper()
	if n, err := u.Write(p); n != len(p) || err != nil {
		t.Fatalf("Write of %d bytes: %d, %v", len(p), n, err)
	}
}

func wantNil(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantBlob(t testing.TB, b storage.Blobs, data []byte) {
	t.Helper()
	got, err := storagetest.Read(t.Context(), b, digest.FromBytes(data))
	if err != nil || string(got) != string(data) {
		t.Errorf("read %d bytes, %v; want the %d that were pushed", len(got), err, len(data))
	}
}

func TestSuite(t *testing.T) {
	storagetest.Placed(t, func(t *testing.T) func(storage.Records) storage.Placed {
		f := newFake(t)
		return func(r storage.Records) storage.Placed { return open(t, options(f, r)) }
	})
}

func TestFailedCalls(t *testing.T) {
	storagetest.FailedCalls(t, func(t *testing.T) storage.Blobs {
		return engine(t, newFake(t), storagetest.NewRecords())
	})
}

func TestASmallBlobIsOneRequest(t *testing.T) {
	f := newFake(t)
	b := engine(t, f, storagetest.NewRecords())
	before := f.count("PutObject")
	_, err := storagetest.Push(t.Context(), b, []byte("{}"))
	wantNil(t, "push", err)

	// A session: one PATCH, and a PUT without bytes, as Docker does.
	u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	data := storagetest.Random(3*mib, 1)
	write(t, u, data)
	wantNil(t, "Close", u.Close(t.Context()))
	u = must(b.Resume(t.Context(), "a", id, 3*mib))(t)
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, b, data)
	if n := f.count("PutObject") - before; n != 2 || f.count("CreateMultipartUpload") != 2 || len(f.keys()) != 2 {
		t.Errorf("%d objects were written in 2 pushes, %d multipart uploads but for those of the probe, %v remain", n,
			f.count("CreateMultipartUpload")-2, f.keys())
	}
}

// TestASessionInOneRequestChangesItsRecordTwice: most blobs are pushed by a POST and one PUT, and each change is a
// commit that the client waits for.
func TestASessionInOneRequestChangesItsRecordTwice(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := engine(t, f, r), engine(t, f, r)
	changes := 0
	r.Fail(func(_, _ []byte) (bool, error) { changes++; return false, nil })
	var resumed error
	f.on(func(op string, _ *http.Request) fault {
		if op == "PutObject" {
			_, resumed = y.Resume(t.Context(), "a", id, -1)
		}
		return fault{}
	})
	u, data := must(x.CreateAs(t.Context(), "a", id, digest.SHA256))(t), storagetest.Random(mib, 1)
	write(t, u, data)
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, y, data)
	if changes != 2 || !errors.Is(resumed, storage.ErrNotFound) {
		t.Errorf("the record was changed %d times, want 2; Resume while the object is stored: %v", changes, resumed)
	}
}

// short is the length of a part in tests that push often.
const short = 128 << 10

// shortEngine is an engine whose parts are short.
func shortEngine(t testing.TB, f *fake, r *storagetest.Records) storagetest.PlacedBlobs {
	t.Helper()
	f.min = short
	return storagetest.PlacedBlobs{Placed: open(t, s3.WithMinPart(options(f, r), short)), Records: r}
}

// sessionData is what pushSession pushes: it has three parts and two tails.
func sessionData() []byte { return storagetest.Random(13*short/5, 1) }

// pushSession pushes in three requests, at processes that take turns, with tails and parts.
func pushSession(t testing.TB, data []byte, all ...storage.Blobs) error {
	t.Helper()
	ctx := t.Context()
	u, err := all[0].CreateAs(ctx, "a", id, digest.SHA256)
	if err != nil {
		return err
	}
	for i, cut := range []int{6 * short / 5, 12 * short / 5} {
		from := []int{0, 6 * short / 5}[i]
		if _, err := u.Write(data[from:cut]); err != nil {
			_ = u.Cancel(ctx)
			return err
		}
		if err := u.Close(ctx); err != nil {
			return err
		}
		if u, err = all[(i+1)%len(all)].Resume(ctx, "a", id, int64(cut)); err != nil {
			return err
		}
	}
	if _, err := u.Write(data[12*short/5:]); err != nil {
		_ = u.Cancel(ctx)
		return err
	}
	return u.Commit(ctx, digest.FromBytes(data))
}

func TestASessionLeavesOneObject(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := shortEngine(t, f, r), shortEngine(t, f, r)
	data := sessionData()
	wantNil(t, "push", pushSession(t, data, x, y))
	wantBlob(t, y, data)
	if keys := f.keys(); len(keys) != 1 || f.openUploads() != 0 {
		t.Errorf("left: %v, and %d multipart uploads", keys, f.openUploads())
	}
	for range r.Sessions() {
		t.Error("the record is left")
	}
}

func TestADigestOfAnotherAlgorithmIsReadAgain(t *testing.T) {
	f := newFake(t)
	b := engine(t, f, storagetest.NewRecords())
	data := storagetest.Random(12*mib, 3)
	for _, right := range []bool{true, false} {
		u := must(b.Create(t.Context(), "a", digest.SHA256))(t)
		write(t, u, data)
		d := digest.SHA512.FromBytes(data)
		if !right {
			d = digest.SHA512.FromString("something else")
		}
		err := u.Commit(t.Context(), d)
		if right != (err == nil) || !right && !errors.Is(err, storage.ErrDigest) {
			t.Errorf("right digest %v: %v", right, err)
		}
	}
	if keys := f.keys(); len(keys) != 1 {
		t.Errorf("left: %v; the bytes of the wrong digest are removed", keys)
	}
}

func TestAStoredHashThatCannotBeReadCostsASecondReading(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	data := storagetest.Random(13*mib, 4)
	for _, right := range []bool{true, false} {
		u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
		write(t, u, data[:12*mib])
		wantNil(t, "Close", u.Close(t.Context()))
		old := must(r.Session(t.Context(), "a", id))(t)
		wantNil(t, "SetSession", r.SetSession(t.Context(), "a", id, old, s3.WithoutHash(old)))
		u = must(b.Resume(t.Context(), "a", id, 12*mib))(t)
		write(t, u, data[12*mib:])
		d := digest.FromBytes(data)
		if !right {
			d = digest.FromString("something else")
		}
		if err := u.Commit(t.Context(), d); right != (err == nil) || !right && !errors.Is(err, storage.ErrDigest) {
			t.Errorf("right digest %v: %v", right, err)
		}
	}
	wantBlob(t, b, data)
	if keys := f.keys(); len(keys) != 1 {
		t.Errorf("left: %v", keys)
	}
}

func TestObjectsListsAllPages(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	for i := range 25 {
		must(storagetest.Push(t.Context(), b, []byte{byte(i)}))(t)
	}
	seen := map[string]bool{}
	var places []string
	for o, err := range b.Objects(t.Context()) {
		if err != nil || o.Size != 1 || o.ModTime.IsZero() || seen[o.Place] {
			t.Fatalf("%+v, %v", o, err)
		}
		seen[o.Place] = true
		places = append(places, o.Place)
	}
	if len(places) != 25 {
		t.Fatalf("%d objects", len(places))
	}
	wantNil(t, "Remove", b.Remove(t.Context(), append(places[5:], "00000001/none")...))
	wantNil(t, "Remove of what does not exist", b.Remove(t.Context(), places[7]))
	wantNil(t, "Remove of nothing", b.Remove(t.Context()))
	if keys := f.keys(); len(keys) != 5 {
		t.Errorf("%d objects are left, want 5", len(keys))
	}
}

func TestBounds(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	o := options(f, r)
	o.MaxUploads = 1
	b := open(t, o)
	u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	if _, err := b.CreateAs(t.Context(), "b", id, digest.SHA256); !errors.Is(err, storage.ErrBusy) {
		t.Errorf("a second upload: %v", err)
	}
	wantNil(t, "Cancel", u.Cancel(t.Context()))
	wantNil(t, "Cancel", must(b.CreateAs(t.Context(), "b", id, digest.SHA256))(t).Cancel(t.Context()))

	o.ReadOnly = true
	before := len(f.keys())
	b = open(t, o)
	_, err := b.Create(t.Context(), "a", digest.SHA256)
	_, err2 := b.Resume(t.Context(), "a", id, -1)
	for what, err := range map[string]error{"Create": err, "Resume": err2, "Room": b.Room(t.Context()),
		"Remove": b.Remove(t.Context(), "x/y")} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%s, read-only: %v", what, err)
		}
	}
	if len(f.keys()) != before {
		t.Error("it has written")
	}
}

// TestAQuotaThatASessionOfAnotherProcessFills is full here as well, without waiting for the next Expire.
func TestAQuotaThatASessionOfAnotherProcessFills(t *testing.T) {
	f, uploads := newFake(t), storage.NewUploads()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Uploads: uploads, Placed: true})
	x.SetQuotas([]storage.Quota{{Name: "a", Match: func(repo string) bool { return repo == "a" }, Bytes: 10 * mib}})
	o := options(f, x)
	other := open(t, o)
	o.Uploads = uploads
	b := open(t, o)
	u := must(other.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, storagetest.Random(8*mib, 1))
	wantNil(t, "Close", u.Close(t.Context()))
	mine := must(b.Create(t.Context(), "a", digest.SHA256))(t)
	if _, err := mine.Write(storagetest.Random(4*mib, 2)); !errors.As(err, new(*storage.QuotaError)) {
		t.Errorf("12 MiB of two processes under a quota of 10: %v", err)
	}
	wantNil(t, "Cancel", mine.Cancel(t.Context()))
}

// TestReplicasShareAQuota: what one receives in one request counts at the others, whichever of them receives the chunks
// of an upload it counts once, and what was received becomes a blob.
func TestReplicasShareAQuota(t *testing.T) {
	f, j := newFake(t), memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	var all []*s3.Blobs
	var indexes []*storage.Index
	for i := range 3 {
		uploads := storage.NewUploads()
		x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Uploads: uploads, Placed: true})
		x.SetQuotas([]storage.Quota{{Name: "a", Match: func(repo string) bool { return repo == "a" }, Bytes: 40 * mib}})
		wantNil(t, "Beat", x.Beat(t.Context(), "replica-"+string(rune('0'+i))))
		o := options(f, x)
		o.Uploads = uploads
		all, indexes = append(all, open(t, o)), append(indexes, x)
	}
	whole := must(all[0].Create(t.Context(), "a", digest.SHA256))(t)
	write(t, whole, storagetest.Random(16*mib, 1))
	mine := must(all[1].Create(t.Context(), "a", digest.SHA256))(t)
	if _, err := mine.Write(storagetest.Random(25*mib, 2)); !errors.As(err, new(*storage.QuotaError)) {
		t.Errorf("41 MiB of two replicas under a quota of 40: %v", err)
	}
	wantNil(t, "Cancel", mine.Cancel(t.Context()))
	wantNil(t, "Cancel", whole.Cancel(t.Context()))

	data := storagetest.Random(36*mib, 3)
	for i := range 9 {
		b := all[i%3]
		var u storage.Upload
		if i == 0 {
			u = must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
		} else {
			u = must(b.Resume(t.Context(), "a", id, int64(i)*4*mib))(t)
		}
		write(t, u, data[i*4*mib:(i+1)*4*mib])
		if i < 8 {
			wantNil(t, "Close", u.Close(t.Context()))
			continue
		}
		d, x := digest.FromBytes(data), indexes[i%3]
		release := must(x.Commit(t.Context(), u, d))(t)
		wantNil(t, "Update", x.Update(t.Context(), "a", func(tx *storage.Tx) error {
			if e, over := tx.Excess(d, int64(len(data))); over {
				return &storage.QuotaError{Excess: e}
			}
			tx.Link(d, int64(len(data)))
			return nil
		}))
		release()
	}
	for i, x := range indexes {
		if u := x.Quotas()[0]; u.Used != 36*mib && u.Open == 0 {
			t.Errorf("replica %d: %d bytes used, %d of them open", i, u.Used, u.Open)
		}
	}
}

func TestQuotasCountSessionsOfAllProcesses(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	uploads := storage.NewUploads()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Uploads: uploads})
	x.SetQuotas([]storage.Quota{{Name: "a", Match: func(repo string) bool { return repo == "a" }, Bytes: 10 * mib}})
	o := options(f, r)
	other := open(t, o)
	o.Uploads = uploads
	b := open(t, o)
	used := func(want int64) {
		t.Helper()
		if got := x.Quotas()[0].Open; got != want {
			t.Errorf("%d bytes are open, want %d", got, want)
		}
	}
	u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, storagetest.Random(4*mib, 1))
	used(4 * mib)
	wantNil(t, "Close", u.Close(t.Context()))
	used(4 * mib)
	u = must(other.Resume(t.Context(), "a", id, -1))(t) // another process adds a MiB
	write(t, u, storagetest.Random(mib, 1))
	wantNil(t, "Close", u.Close(t.Context()))
	u = must(b.Resume(t.Context(), "a", id, 5*mib))(t)
	used(5 * mib)
	if _, err := u.Write(storagetest.Random(6*mib, 2)); err == nil {
		t.Error("a write beyond the quota succeeded")
	}
	wantNil(t, "Cancel", u.Cancel(t.Context()))
	used(0)

	u = must(other.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, storagetest.Random(mib, 1))
	wantNil(t, "Close", u.Close(t.Context()))
	expire(t, b, -1)
	used(mib) // it sees those of other processes
	u = must(other.Resume(t.Context(), "a", id, -1))(t)
	write(t, u, storagetest.Random(mib, 2))
	wantNil(t, "Close", u.Close(t.Context()))
	expire(t, b, -1)
	used(2 * mib) // and that they grow
	wantNil(t, "Cancel", must(other.Resume(t.Context(), "a", id, -1))(t).Cancel(t.Context()))
	expire(t, b, -1)
	used(0)
}

// TestTheLastRequestOfAnUploadCopiesNothing: it costs the same whatever the length is.
func TestTheLastRequestOfAnUploadCopiesNothing(t *testing.T) {
	for _, size := range []int{10 * mib, 12 * mib, 40 * mib} {
		f, r := newFake(t), storagetest.NewRecords()
		b := engine(t, f, r)
		data := storagetest.Random(size, 1)
		u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
		write(t, u, data)
		wantNil(t, "Close", u.Close(t.Context()))
		u = must(b.Resume(t.Context(), "a", id, int64(size)))(t)
		requests, received := f.total(), f.bytes()
		wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
		requests, received = f.total()-requests, f.bytes()-received
		// A tail is read, sent as the last part, and removed.
		tail := int64(size % (5 * mib))
		if most := map[bool]int{true: 4, false: 1}[tail > 0]; requests > most || received > tail+1<<10 {
			t.Errorf("%d bytes: Commit made %d requests and sent %d bytes", size, requests, received)
		}
		wantBlob(t, b, data)
	}
}

func TestEncryptionAndRedirect(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	var mu sync.Mutex
	asked := map[string]string{}
	f.on(func(op string, r *http.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		asked[op] = r.Header.Get("X-Amz-Server-Side-Encryption") + " " +
			r.Header.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
		return fault{}
	})
	o := options(f, r)
	o.SSE, o.KMSKey = "aws:kms", "my-key"
	b := storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
	data := storagetest.Random(6*mib, 1)
	d := must(storagetest.Push(t.Context(), b, data))(t)
	wantBlob(t, b, data)
	mu.Lock()
	if asked["PutObject"] != "aws:kms my-key" || asked["CreateMultipartUpload"] != "aws:kms my-key" {
		t.Errorf("requests had %q", asked)
	}
	mu.Unlock()

	u := must(b.Placed.(*s3.Blobs).Redirect(t.Context(), d, time.Minute))(t)
	response := must(http.Get(u))(t)
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s: %d bytes, %v", u, len(got), err)
	}
	if _, err := b.Placed.(*s3.Blobs).Redirect(t.Context(), digest.FromString("other"), time.Minute); !errors.Is(err,
		storage.ErrNotFound) {
		t.Errorf("Redirect of what does not exist: %v", err)
	}
}

func TestTLSWithACAFile(t *testing.T) {
	f := newFake(t)
	secure := httptest.NewUnstartedServer(f)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	r := storagetest.NewRecords()
	o := options(f, r)
	o.Endpoint = secure.URL
	if _, err := s3.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "set ca-file") {
		t.Errorf("without its CA: %v", err)
	}
	plain := o
	plain.Endpoint = strings.Replace(f.URL, "http:", "https:", 1)
	if _, err := s3.Open(t.Context(), plain); err == nil || !strings.Contains(err.Error(), "write http://") {
		t.Errorf("TLS with a service without: %v", err)
	}
	o.CAFile = filepath.Join(t.TempDir(), "ca.crt")
	wantNil(t, "WriteFile", os.WriteFile(o.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: secure.Certificate().Raw}), 0o600))
	b := storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
	data := storagetest.Random(11*mib, 1)
	must(storagetest.Push(t.Context(), b, data))(t)
	wantBlob(t, b, data)
}

func TestSettingsOfProcessesMayDiffer(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	o := options(f, r)
	o.PartSize, o.Memory = 32*mib, 64*mib
	large := open(t, o)
	o.PartSize, o.Memory = 5*mib, 10*mib
	small := storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
	data := storagetest.Random(36*mib, 1)
	u := must(large.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, data[:15*mib])
	wantNil(t, "Close", u.Close(t.Context()))
	u = must(small.Resume(t.Context(), "a", id, 15*mib))(t) // its tail is longer than three parts, and than all memory
	write(t, u, data[15*mib:20*mib])
	wantNil(t, "Close", u.Close(t.Context()))
	u = must(large.Resume(t.Context(), "a", id, 20*mib))(t)
	write(t, u, data[20*mib:])
	wantNil(t, "Close", u.Close(t.Context()))
	u = must(small.Resume(t.Context(), "a", id, 36*mib))(t)
	wantNil(t, "Commit", u.Commit(t.Context(), digest.FromBytes(data)))
	wantBlob(t, small, data)
}

func TestAnUploadOfTooManyPartsIsRefused(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	u := must(b.CreateAs(t.Context(), "a", id, digest.SHA256))(t)
	write(t, u, storagetest.Random(5*mib, 1))
	wantNil(t, "Close", u.Close(t.Context()))
	old := must(r.Session(t.Context(), "a", id))(t)
	wantNil(t, "SetSession", r.SetSession(t.Context(), "a", id, old, s3.WithNext(old, 10_000)))
	u = must(b.Resume(t.Context(), "a", id, 5*mib))(t)
	var err error
	for n, block := 0, make([]byte, mib); n < 200 && err == nil; n++ { // part 10,000 has 100 MiB
		_, err = u.Write(block)
	}
	if !errors.Is(err, storage.ErrFull) || !strings.Contains(err.Error(), "10000 parts") {
		t.Errorf("beyond 10,000 parts: %v", err)
	}
}

func TestOpenSaysThatAnObjectIsMissing(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := engine(t, f, r)
	r.Name(digest.FromString("x"), "00000001/lost")
	if _, err := b.Open(t.Context(), digest.FromString("x")); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Open: %v", err)
	}
	data := storagetest.Random(200<<10, 1)
	must(storagetest.Push(t.Context(), b, data))(t)
	before := f.total()
	wantBlob(t, b, data)
	if n := f.total() - before; n != 1 {
		t.Errorf("%d requests to read a small blob", n)
	}
	if _, err := s3.Open(t.Context(), options(f, nil)); err == nil || !strings.Contains(err.Error(), "Records") {
		t.Errorf("without Records: %v", err)
	}
}
