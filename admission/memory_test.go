package admission

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestWhatIsRememberedIsWhatIsParsed: also by many at once, and when there is more than there is room for.
func TestWhatIsRememberedIsWhatIsParsed(t *testing.T) {
	var m memory
	var group sync.WaitGroup
	for n := range 4 {
		group.Go(func() {
			for i := range 3 * maxMemory {
				all := []string{"nginx", fmt.Sprintf("host.example/app:%d", i), fmt.Sprintf("UPPER/%d/%d", n, i)}
				if i%50 == 0 { // they take long
					all = append(all, strings.Repeat("a", i%2000))
				}
				for _, s := range all {
					want, wantErr := ParseReference(s)
					got, err := m.reference(s)
					if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
						t.Errorf("%.100q is %+v (%v), remembered as %+v (%v)", s, want, wantErr, got, err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if n := len(m.fresh) + len(m.old); n > 2*maxMemory {
		t.Errorf("%d are remembered, of %d", n, 2*maxMemory)
	}
	if _, fresh := m.fresh["nginx"]; !fresh {
		if _, old := m.old["nginx"]; !old {
			t.Error("what is asked for all the time is forgotten")
		}
	}
}
