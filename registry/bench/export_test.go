package bench

// WithLarge sets the size of the large blob, so that tests are quick.
func WithLarge(o Options, size int) Options {
	o.large = size
	return o
}

// Names returns the names of the scenarios.
func Names() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}
