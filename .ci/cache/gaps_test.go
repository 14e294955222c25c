package cache

// What the server does not do yet. The tests of what it does not do are weaker until these lines are changed.
const (
	// resumes: a download that a kill has interrupted goes on after the restart.
	resumes = true
	// referrers: the list of referrers of a manifest of an upstream is that of the upstream.
	referrers = true
)

// slow are the failures of an origin that delay a pull of what is held by a tag that is not fresh: after a 500 it is
// asked twice more before each pull, and for one that hangs each pull waits two seconds.
var slow = map[string]bool{"500": true, "hung": true}

// smallSlower is how much longer a cached pull of 40 layers of 2 kB may take. In some runs it is 1.0 times, in others
// up to 1.08, from the start of the server to its end.
const smallSlower = 1.25
