package cache

// What the server does not do yet. The tests of what it does not do are weaker until these lines are changed.
const (
	// resumes: a download that a kill has interrupted goes on after the restart.
	resumes = false
	// referrers: the list of referrers of a manifest of an upstream is that of the upstream.
	referrers = false
)

// slow are the failures of an origin that delay a pull of what is held by a tag that is not fresh: with 500 it is asked
// three times before each pull, and one that hangs is waited for for two seconds each time.
var slow = map[string]bool{"500": true, "hung": true}
