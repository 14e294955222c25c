package limit

// MaxAccounts is the bound, for a test that goes to it.
const MaxAccounts = maxAccounts

// Accounts is how many accounts there are.
func (l *Limits) Accounts() int {
	a := l.now.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}
