package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/storagetest"
)

// crashDir is the variable that turns the test binary into the process that gets killed; crashFirst has the number of
// its first push.
const (
	crashDir   = "STORAGE_TEST_CRASH_DIR"
	crashFirst = "STORAGE_TEST_CRASH_FIRST"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		first, _ := strconv.Atoi(os.Getenv(crashFirst))
		if err := pushUntilKilled(dir, first); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// crashBlob returns the layer of the i-th push.
func crashBlob(i int) []byte {
	r := rand.New(rand.NewPCG(uint64(i), 0))
	b := make([]byte, r.IntN(60_000))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func crashManifest(i int) []byte { return fmt.Appendf(nil, "manifest\n%d\n", i) }

func crashRepo(i int) string { return fmt.Sprint("repo", i%3) }

// pushUntilKilled pushes images and acknowledges each with a line, as the answer of a registry would.
func pushUntilKilled(dir string, first int) error {
	ctx := context.Background()
	b, err := disk.Open(dir, disk.Options{})
	if err != nil {
		return err
	}
	j, err := bolt.Open(dir)
	if err != nil {
		return err
	}
	x, err := storage.OpenIndex(ctx, j, storage.IndexOptions{})
	if err != nil {
		return err
	}
	for i := first; ; i++ {
		data := crashBlob(i)
		layer, err := storagetest.Push(ctx, b, data)
		if err != nil {
			return err
		}
		d, err := storagetest.Push(ctx, b, crashManifest(i))
		if err != nil {
			return err
		}
		err = x.Update(ctx, crashRepo(i), func(tx *storage.Tx) error {
			tx.Link(layer, int64(len(data)))
			m := storage.Manifest{Digest: d, MediaType: "application/a", Size: int64(i), Refs: []digest.Digest{layer}}
			return errors.Join(tx.PutManifest(m), tx.SetTag(fmt.Sprint("v", i), d), tx.SetTag("latest", d))
		})
		if err != nil {
			return err
		}
		if _, err := fmt.Println("pushed", i); err != nil {
			return err
		}
	}
}

// TestAcknowledgedPushesSurviveAKill kills a process again and again while it pushes. STORAGE_TEST_KILLS is how often;
// by default as often as a few seconds allow.
func TestAcknowledgedPushesSurviveAKill(t *testing.T) {
	const perDir = 15 // everything is checked after each kill, so a store must not grow without end
	kills, patience := perDir, 8*time.Second
	if v := os.Getenv("STORAGE_TEST_KILLS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("STORAGE_TEST_KILLS: %v", err)
		}
		kills, patience = n, 24*time.Hour
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	began, done, pushes := time.Now(), 0, 0
	for done < kills && time.Since(began) < patience && !t.Failed() {
		dir, acknowledged := t.TempDir(), map[int]bool{}
		for range min(perDir, kills-done) {
			for _, i := range runAndKill(t, dir, done*10_000, time.Duration(r.IntN(120_000))*time.Microsecond) {
				acknowledged[i] = true
			}
			done++
			wantAcknowledged(t, dir, acknowledged)
			if t.Failed() || time.Since(began) > patience {
				break
			}
		}
		pushes += len(acknowledged)
	}
	t.Logf("%d kills, %d pushes were acknowledged", done, pushes)
	if pushes < done {
		t.Errorf("only %d pushes in %d rounds: the test proves nothing", pushes, done)
	}
}

// runAndKill starts the process, kills it some time after its first acknowledgement, and returns the pushes that it
// acknowledged.
func runAndKill(t *testing.T, dir string, first int, after time.Duration) (acknowledged []int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashFirst+"="+strconv.Itoa(first))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		i, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "pushed "))
		if err != nil {
			t.Errorf("the process printed %q", lines.Text())
			continue
		}
		if acknowledged = append(acknowledged, i); len(acknowledged) == 1 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
		t.Errorf("the process ended before it was killed: %v, %s", err, stderr.String())
	}
	return acknowledged
}

// wantAcknowledged opens what the killed process left: every push that it acknowledged is complete, and of any other
// push everything is there or nothing.
func wantAcknowledged(t *testing.T, dir string, acknowledged map[int]bool) {
	t.Helper()
	ctx := t.Context()
	b, j := openDisk(t, dir), openBolt(t, dir)
	defer j.Close()
	x := storagetest.OpenIndex(t, j)
	defer x.Close()
	for info, err := range b.All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		got, err := storagetest.Read(ctx, b, info.Digest)
		if err != nil || digest.FromBytes(got) != info.Digest {
			t.Errorf("blob %s has other content, %v", info.Digest, err)
		}
	}
	found, last := map[int]bool{}, map[string]int{}
	for k := range 3 {
		repo := crashRepo(k)
		tags, _, err := x.Tags(ctx, repo, "", -1)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			i, err := strconv.Atoi(strings.TrimPrefix(tag, "v"))
			if err != nil {
				continue // latest
			}
			found[i], last[repo] = true, max(last[repo], i)
			wantPushed(t, b, x, repo, i)
		}
		d, ok, err := x.Resolve(ctx, repo, "latest")
		if err != nil || ok != (len(tags) > 0) || ok && int(d.Size) != last[repo] {
			t.Errorf("%s: latest is %d, %v, %v; want %d", repo, d.Size, ok, err, last[repo])
		}
	}
	for i := range acknowledged {
		if !found[i] {
			t.Errorf("push %d was acknowledged and is lost", i)
		}
	}
	if len(found) > len(acknowledged)+done(acknowledged) {
		t.Errorf("%d pushes are there, but only %d were acknowledged", len(found), len(acknowledged))
	}
	if _, err := b.Expire(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir + "/uploads")
	if err != nil || len(left) != 0 {
		t.Errorf("uploads are left: %v, %v", left, err)
	}
	if _, err := os.Stat(journalIn(dir) + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a temporary journal is left: %v", err)
	}
}

// done returns the number of rounds in which a push was acknowledged: each may have finished one more push.
func done(acknowledged map[int]bool) int {
	rounds := map[int]bool{}
	for i := range acknowledged {
		rounds[i/10_000] = true
	}
	return len(rounds)
}

// wantPushed checks that the i-th push is complete.
func wantPushed(t *testing.T, b storage.Blobs, x *storage.Index, repo string, i int) {
	t.Helper()
	ctx := t.Context()
	d, ok, err := x.Resolve(ctx, repo, fmt.Sprint("v", i))
	if !ok || err != nil || d.Digest() != digest.FromBytes(crashManifest(i)) {
		t.Errorf("push %d: its tag names %s, %v, %v", i, d.Digest(), ok, err)
	}
	data := crashBlob(i)
	if size, ok, err := x.Blob(ctx, repo, digest.FromBytes(data)); !ok || err != nil || size != int64(len(data)) {
		t.Errorf("push %d: its layer has %d bytes, %v, %v", i, size, ok, err)
	}
	for _, want := range [][]byte{data, crashManifest(i)} { // that the content is right was checked for every blob
		if info, err := b.Stat(ctx, digest.FromBytes(want)); err != nil || info.Size != int64(len(want)) {
			t.Errorf("push %d: a blob is missing: %v", i, err)
		}
	}
}
