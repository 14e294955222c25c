package upstream

// places bounds what is under way at once. An upstream may take as many places as are free, so that one that hangs
// leaves some to the others: alone it gets half of them, and two get two thirds. It is not safe for concurrent use.
type places struct {
	most, taken int
	by          map[string]int // by upstream
}

func newPlaces(most int) places { return places{most: most, by: map[string]int{}} }

// take takes n places for an upstream. It reports false if there are not so many for it.
func (p *places) take(from string, n int) bool {
	if p.by[from]+n > p.most-p.taken {
		return false
	}
	p.by[from] += n
	p.taken += n
	return true
}

// leave gives n places back.
func (p *places) leave(from string, n int) {
	if p.by[from] -= n; p.by[from] == 0 {
		delete(p.by, from)
	}
	p.taken -= n
}
