package migrate

// WithBudget bounds what a Run holds of what it has found.
func WithBudget(o Options, bytes int) Options {
	o.budget = bytes
	return o
}
