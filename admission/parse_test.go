package admission

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestCachedReferencesAreThoseThatAreParsed asks many at once for more references than the cache holds.
func TestCachedReferencesAreThoseThatAreParsed(t *testing.T) {
	p, err := NewPolicy(PolicyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for n := range 4 {
		group.Go(func() {
			for i := range 2 * maxParsed {
				all := []string{"nginx", fmt.Sprintf("host.example/app:%d", i), fmt.Sprintf("UPPER/%d/%d", n, i)}
				if i%50 == 0 { // they take long to parse
					all = append(all, strings.Repeat("a", i%2000))
				}
				for _, s := range all {
					want, wantErr := ParseReference(s)
					got, err := p.parse(s)
					if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
						t.Errorf("%.100q is %+v (%v), in the cache %+v (%v)", s, want, wantErr, got, err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if n := p.parsed.Len(); n != maxParsed {
		t.Errorf("the cache has %d entries, want %d", n, maxParsed)
	}
	if !p.parsed.Contains("nginx") {
		t.Error("a reference that is asked for all the time is not in the cache")
	}
}
