package engines

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/s3"
	"trow/storage/storagetest"
)

// gateway is a versitygw over a directory, or another S3 server: see startGateway.
type gateway struct {
	endpoint, dir string
	args, env     []string
	cmd           *exec.Cmd
	log           bytes.Buffer // of the process; read it after stop
}

const accessKey, secretKey = "trow-test", "trow-test-secret"

// Not by T.Setenv: tests that have a gateway may run in parallel.
func init() {
	os.Setenv("AWS_ACCESS_KEY_ID", accessKey)
	os.Setenv("AWS_SECRET_ACCESS_KEY", secretKey)
}

// others set the command of other S3 servers, for an address and the directory of the gateway, by the names that
// ENGINES_S3 may have.
var others = map[string]func(t testing.TB, g *gateway, address string){
	"minio": func(t testing.TB, g *gateway, address string) {
		g.args = []string{inPath(t, "minio"), "server", "--quiet", "--address", address, g.dir}
		g.env = []string{"MINIO_ROOT_USER=" + accessKey, "MINIO_ROOT_PASSWORD=" + secretKey}
	},
	"seaweedfs": func(t testing.TB, g *gateway, address string) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		g.args = []string{inPath(t, "weed"), "-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
			"-dir=" + g.dir, "-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024",
			"-volume.max=50", "-filer", "-filer.localSocket=" + filepath.Join(g.dir, "filer.sock"), "-s3",
			"-s3.port=" + port, "-s3.localSocket=" + filepath.Join(g.dir, "s3.sock"), "-s3.port.iceberg=0",
			"-s3.port.lance=0"}
		for _, server := range []string{"master", "volume", "filer"} {
			_, port, err := net.SplitHostPort(freeAddr(t))
			if err != nil {
				t.Fatal(err)
			}
			g.args = append(g.args, "-"+server+".port="+port)
		}
	},
}

func inPath(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is not in PATH; run bash .ci/run s3, or bash .ci/long minio or seaweedfs", program)
	}
	return path
}

// startGateway starts versitygw, or the server that ENGINES_S3 names. The program must be in PATH.
func startGateway(t testing.TB, more ...string) *gateway {
	t.Helper()
	address := freeAddr(t)
	g := &gateway{endpoint: "http://" + address, dir: t.TempDir()}
	if name := os.Getenv("ENGINES_S3"); name != "" {
		others[name](t, g, address)
		g.run(t)
		g.makeBucket(t, address)
		return g
	}
	if err := os.Mkdir(filepath.Join(g.dir, "bucket"), 0o700); err != nil {
		t.Fatal(err)
	}
	g.args = append([]string{inPath(t, "versitygw"), "--access", accessKey, "--secret", secretKey, "--port", address,
		"--quiet", "posix"}, append(more, g.dir)...)
	g.run(t)
	return g
}

// run starts the server for the length of the test. If the test fails, it prints what the server has logged.
func (g *gateway) run(t testing.TB) {
	t.Helper()
	g.start(t)
	t.Cleanup(func() {
		g.stop()
		if t.Failed() && g.log.Len() > 0 {
			t.Logf("the S3 server: %s", g.log.String())
		}
	})
}

// makeBucket makes the bucket of a server that may answer before it is ready.
func (g *gateway) makeBucket(t testing.TB, address string) {
	t.Helper()
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := client.MakeBucket(t.Context(), "bucket", minio.MakeBucketOptions{})
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func (g *gateway) start(t testing.TB) {
	t.Helper()
	g.cmd = exec.Command(g.args[0], g.args[1:]...)
	g.cmd.Env = append(os.Environ(), g.env...)
	g.cmd.Stdout, g.cmd.Stderr = &g.log, &g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.endpoint, "http://"))
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			g.stop()
			t.Fatalf("the S3 server does not answer: %s", g.log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *gateway) stop() {
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait()
}

func (g *gateway) options(r storage.Records) s3.Options {
	return s3.Options{Endpoint: g.endpoint, Bucket: "bucket", Prefix: "team/trow", PathStyle: true, Records: r}
}

func open(t testing.TB, o s3.Options) *s3.Blobs {
	t.Helper()
	b, err := s3.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestS3Suite(t *testing.T) {
	g := startGateway(t)
	n := 0
	storagetest.Placed(t, func(t *testing.T) func(storage.Records) storage.Placed {
		n++
		prefix := fmt.Sprint("place-", n)
		return func(r storage.Records) storage.Placed {
			o := g.options(r)
			o.Prefix = prefix
			return open(t, o)
		}
	})
}

func TestS3SessionOfManyPartsAtTwoProcesses(t *testing.T) {
	g := startGateway(t)
	r := storagetest.NewRecords()
	var both []storagetest.PlacedBlobs
	for range 2 {
		both = append(both, storagetest.PlacedBlobs{Placed: open(t, g.options(r)), Records: r})
	}
	data := storagetest.Random(61<<20, 1)
	d := digest.FromBytes(data)
	u, err := both[0].CreateAs(t.Context(), "team/app", "01234567-89ab-4def-8123-456789abcdef", digest.SHA256)
	for i, left := 0, data; err == nil && len(left) > 0; i++ {
		n := min(len(left), (i+1)*3<<20+12345)
		if _, err = u.Write(left[:n]); err != nil {
			break
		}
		left = left[n:]
		if err = u.Close(t.Context()); err == nil {
			u, err = both[(i+1)%2].Resume(t.Context(), "team/app", u.ID(), int64(len(data)-len(left)))
		}
	}
	if err == nil {
		err = u.Commit(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range both {
		if got, err := storagetest.Read(t.Context(), b, d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	}
	n := 0
	for _, err := range both[0].Objects(t.Context()) {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("%d objects are left, want the blob alone: tails are removed", n)
	}
}

// TestS3ServerRestarts kills the server under an upload and a reader.
func TestS3ServerRestarts(t *testing.T) {
	g := startGateway(t)
	r := storagetest.NewRecords()
	b := storagetest.PlacedBlobs{Placed: open(t, g.options(r)), Records: r}
	data := storagetest.Random(40<<20, 2)
	d := digest.FromBytes(data)
	u, err := b.CreateAs(t.Context(), "team/app", "01234567-89ab-4def-8123-456789abcdef", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(data[:20<<20]); err != nil {
		t.Fatal(err)
	}
	g.stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		time.Sleep(300 * time.Millisecond) // shorter than the retries take
		g.start(t)
	}()
	_, err = u.Write(data[20<<20:])
	<-back
	if err != nil {
		t.Fatalf("Write across a restart: %v", err)
	}
	if err := u.Commit(t.Context(), d); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	f, err := b.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(f, got[:1<<20]); err != nil {
		t.Fatal(err)
	}
	g.stop()
	g.start(t)
	if _, err := io.ReadFull(f, got[1<<20:]); err != nil || !bytes.Equal(got, data) {
		t.Errorf("a reader across a restart: %v", err)
	}
}

func TestS3ErrorsOfARealServer(t *testing.T) {
	g := startGateway(t)
	r := storagetest.NewRecords()
	o := g.options(r)
	o.Bucket = "no-such-bucket"
	if _, err := s3.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "create the bucket") {
		t.Errorf("a bucket that does not exist: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
	_, err := s3.Open(t.Context(), g.options(r))
	if err == nil || !strings.Contains(err.Error(), "check the credentials") ||
		strings.Contains(err.Error(), "wrong-secret") {
		t.Errorf("a wrong secret: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "trow-test-secret")
	id := os.Getenv("AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_ACCESS_KEY_ID", "another")
	if _, err := s3.Open(t.Context(), g.options(r)); err == nil ||
		!strings.Contains(err.Error(), "check the credentials") {
		t.Errorf("an unknown access key: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", id)
	b := open(t, g.options(r))
	u, err := b.Create(t.Context(), "a", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(t.Context(), digest.FromString("")); err != nil {
		t.Fatal(err)
	}
	r.Name(digest.FromString(""), u.(storage.PlacedUpload).Place())
	if err := os.Rename(filepath.Join(g.dir, "bucket"), filepath.Join(g.dir, "moved")); err != nil {
		t.Fatal(err)
	}
	_, err = b.Stat(t.Context(), digest.FromString(""))
	if err == nil || errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), "create the bucket") {
		t.Errorf("Stat in a bucket that is gone: %v; it must not look like a lost blob", err)
	}
}

// pattern is a reader of n bytes that are quick to make, and the same each time.
type pattern struct{ left int64 }

var block = storagetest.Random(1<<20+7, 9)

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(int64(len(b)), p.left)], block[int64(len(block))-1-p.left%int64(len(block)):])
	p.left -= int64(n)
	return n, nil
}

// TestS3Figures prints what README.md of storage/s3 says.
func TestS3Figures(t *testing.T) {
	if os.Getenv("TROW_FIGURES") == "" {
		t.Skip("TROW_FIGURES is not set")
	}
	// With its metadata in files: in an extended attribute ext4 has no room for the parts of 10 GiB.
	g := startGateway(t, "--sidecar", t.TempDir())
	r := storagetest.NewRecords()
	b := storagetest.PlacedBlobs{Placed: open(t, g.options(r)), Records: r}
	for range 3 {
		put, get := direct(t, g, 64<<20)
		t.Logf("  64 MiB without the engine: PUT %.0f MiB/s, GET %.0f MiB/s", put, get)
	}
	sizes := []int64{64 << 20, 64 << 20, 64 << 20, 1 << 30}
	if os.Getenv("TROW_FIGURES") == "large" { // takes 21 GiB of the disk
		sizes = append(sizes, 10<<30)
	}
	for _, size := range sizes {
		h := sha256.New()
		if _, err := io.Copy(h, &pattern{size}); err != nil {
			t.Fatal(err)
		}
		d := digest.NewDigest(digest.SHA256, h)
		begin := time.Now()
		id := fmt.Sprintf("01234567-89ab-4def-8123-%012d", begin.UnixNano()%1e12)
		u, err := b.CreateAs(t.Context(), "a", id, digest.SHA256)
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{u}, &pattern{size}, make([]byte, 256<<10))
		}
		if err == nil {
			err = u.Close(t.Context())
		}
		if err == nil {
			u, err = b.Resume(t.Context(), "a", u.ID(), size)
		}
		if err != nil {
			t.Fatal(err)
		}
		sent := time.Since(begin)
		begin = time.Now()
		if err := u.Commit(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		last := time.Since(begin)
		begin = time.Now()
		f, err := b.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 256<<10))
		if err != nil || n != size {
			t.Fatal(n, err)
		}
		_ = f.Close()
		mib := float64(size) / (1 << 20)
		t.Logf("%4.0f MiB: PATCH %.0f MiB/s, the final PUT %v, GET %.0f MiB/s", mib, mib/sent.Seconds(),
			last.Round(time.Millisecond), mib/time.Since(begin).Seconds())
		place, _ := r.Unname(d)
		if err := b.Remove(t.Context(), place); err != nil {
			t.Fatal(err)
		}
	}
}

// direct puts and gets an object in one request each, and returns MiB per second.
func direct(t *testing.T, g *gateway, size int64) (put, get float64) {
	c, err := minio.NewCore(strings.TrimPrefix(g.endpoint, "http://"), &minio.Options{Creds: credentials.NewEnvAWS(),
		Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = c.PutObject(t.Context(), "bucket", "direct", &pattern{size}, size, "", "", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put = float64(size>>20) / time.Since(begin).Seconds()
	begin = time.Now()
	body, _, _, err := c.GetObject(t.Context(), "bucket", "direct", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, make([]byte, 256<<10)); err != nil || n != size {
		t.Fatal(n, err)
	}
	return put, float64(size>>20) / time.Since(begin).Seconds()
}

// TestS3ManyUploads has 200 uploads at once, and looks at the memory.
func TestS3ManyUploads(t *testing.T) {
	g := startGateway(t)
	r := storagetest.NewRecords()
	o := g.options(r)
	o.Memory = 128 << 20
	b := storagetest.PlacedBlobs{Placed: open(t, o), Records: r}
	const uploads, size = 200, 6 << 20
	heap := storagetest.WatchHeap()
	h := sha256.New()
	_, _ = io.Copy(h, &pattern{size})
	d := digest.NewDigest(digest.SHA256, h)
	var wg sync.WaitGroup
	for range uploads {
		wg.Go(func() {
			u, err := b.Create(t.Context(), "a", digest.SHA256)
			if err == nil {
				_, err = io.CopyBuffer(struct{ io.Writer }{u}, &pattern{size}, make([]byte, 32<<10))
			}
			if err == nil {
				err = u.Commit(t.Context(), d)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	peak := heap()
	t.Logf("%d uploads of %d MiB at once: %d MiB of heap at most", uploads, size>>20, peak>>20)
	if peak > 512<<20 {
		t.Errorf("%d MiB of heap, want 512 at most", peak>>20)
	}
}
