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
