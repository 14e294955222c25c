package storage_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestRemovedRecordsAreUsedAgain: however often a registry is filled and emptied, its state is as large as after one
// filling.
func TestRemovedRecordsAreUsedAgain(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	var first storage.Sizes
	for round := range 12 {
		churn(t, x, round, addImage)
		size := storage.SizesOf(x)
		if round == 0 {
			first = size
		}
		if size != first {
			t.Fatalf("round %d: %+v, after the first filling %+v", round, size, first)
		}
		churn(t, x, round, dropImage)
		if got, left := x.Stats(), storage.Leftovers(x); got != (storage.Stats{}) || left != 0 {
			t.Fatalf("round %d: emptied, %+v and %d records are left", round, got, left)
		}
	}
}

// churn calls do for each image of a round: 300 in 20 repos.
func churn(t *testing.T, x *storage.Index, round int, do func(tx *storage.Tx, m storage.Manifest, tag string) error) {
	t.Helper()
	for r := range 20 {
		err := x.Update(t.Context(), fmt.Sprint("repo", round, "-", r), func(tx *storage.Tx) (err error) {
			for i := range 15 {
				alg := digest.SHA256
				if i%5 == 0 {
					alg = digest.SHA512
				}
				m := storage.Manifest{Digest: alg.FromString(fmt.Sprint("m", round, r, i)), MediaType: "a", Size: 1,
					Subject: digest.FromString(fmt.Sprint("m", round, r, i/4))}
				for k := range 5 {
					m.Refs = append(m.Refs, alg.FromString(fmt.Sprint("b", round, r, i, k)))
				}
				m.Refs = append(m.Refs, digest.FromString(fmt.Sprint("shared", round)))
				err = errors.Join(err, do(tx, m, fmt.Sprint("v", i)))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func addImage(tx *storage.Tx, m storage.Manifest, tag string) error {
	for _, d := range m.Refs {
		tx.Link(d, 1)
	}
	return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest))
}

func dropImage(tx *storage.Tx, m storage.Manifest, _ string) error {
	err := tx.DeleteManifest(m.Digest)
	for _, d := range m.Refs {
		if tx.Linked(d) {
			err = errors.Join(err, tx.Unlink(d))
		}
	}
	return err
}

// TestDigestsThatShareAHalf cost no more than others: what a manifest refers to need not be there, so a client can make
// up thousands of digests that are alike. All of them in one bucket would stop the committer, and with it all verdicts,
// for minutes.
func TestDigestsThatShareAHalf(t *testing.T) {
	const refs = 6000
	took := func(pattern string) time.Duration {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		m := storage.Manifest{Digest: digestOf("m", 1), MediaType: "application/a", Size: 1}
		for i := range refs {
			m.Refs = append(m.Refs, digest.Digest("sha512:"+fmt.Sprintf(pattern, i)))
		}
		begin := time.Now()
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
		return time.Since(begin)
	}
	first, last := "%064x"+strings.Repeat("0", 64), strings.Repeat("0", 64)+"%064x"
	honest := took(first)
	for range 3 {
		if took(last) < 8*honest {
			return
		}
		honest = max(honest, took(first)) // the machine may be busy
	}
	t.Errorf("digests with the same first half took more than 8 times as long as %s", honest)
}

// TestAManifestIsFoundByHalfOfItsSHA512 as long as the repository holds it.
func TestAManifestIsFoundByHalfOfItsSHA512(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	d, referenced := digest.SHA512.FromString("m"), digest.SHA512.FromString("other")
	find := func(repo string, of digest.Digest) (found digest.Digest, held bool) {
		storagetest.Update(t, x, repo, func(tx *storage.Tx) error {
			found, held = tx.ManifestBySHA512(of.Encoded()[:64])
			return nil
		})
		return found, held
	}
	m := storage.Manifest{Digest: d, MediaType: "application/a", Size: 1, Refs: []digest.Digest{referenced}}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		if err := tx.PutManifest(m); err != nil {
			return err
		}
		if found, held := tx.ManifestBySHA512(d.Encoded()[:64]); !held || found != d {
			t.Errorf("in the same update: %s, %t", found, held)
		}
		return nil
	})
	if found, held := find("r", d); !held || found != d {
		t.Errorf("%s, %t; want %s", found, held, d)
	}
	for _, c := range []struct {
		repo string
		of   digest.Digest
	}{{"s", d}, {"r", referenced}, {"r", "sha512:" + digest.Digest(d.Encoded()[64:])}, {"r", digest.FromString("m")}} {
		if found, held := find(c.repo, c.of); held {
			t.Errorf("%s in %s: found %s", c.of, c.repo, found)
		}
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(d) })
	if found, held := find("r", d); held {
		t.Errorf("deleted: found %s", found)
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	if found, held := find("r", d); !held || found != d {
		t.Errorf("put again: %s, %t", found, held)
	}
}
