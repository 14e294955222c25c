package limit

// MaxAccounts is the bound, for a test that reaches it.
const MaxAccounts = maxAccounts

// Accounts returns the number of accounts.
func (l *Limits) Accounts() int {
	a := l.current.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all.Len()
}

// Counts returns the sum of the counters of each row: how many places are held.
func (p *Places) Counts() (sums [2]int64) {
	for i := range p.rows {
		for j := range p.rows[i] {
			sums[i] += int64(p.rows[i][j].Load())
		}
	}
	return sums
}
