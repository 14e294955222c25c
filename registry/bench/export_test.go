package bench

// WithLarge makes the large blob smaller, so that tests are quick.
func WithLarge(o Options, size int) Options {
	o.large = size
	return o
}

// Names are the scenarios'.
func Names() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}
