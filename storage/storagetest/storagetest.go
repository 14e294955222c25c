// Package storagetest has the suites that every engine of package storage must pass, and wrappers that make an
// engine fail when a test asks for it.
//
// # Words
//
//   - place: where an engine keeps its data, such as a directory. A suite asks for a new one in every test.
//   - open: opens the engine at its place. To open it again is a restart: the engine closes what was open before,
//     and finds what it kept. An engine that keeps nothing returns the same one again.
//   - fault: a call that fails because the test says so, before or after it took effect.
//
// # Invariants
//
// The suites test what the interfaces' comments promise and nothing else, so an engine that passes them can take
// another one's place. A wrapper without a fault behaves as what it wraps.
//
// # What it does not do
//
// It does not look at how an engine keeps its data, and it does not measure.
package storagetest
