// Package storagetest has the suites that every engine of package storage must pass, and wrappers that make an engine
// fail when a test asks for it.
//
// # Words
//
//   - place: where an engine keeps its data, such as a directory. A suite asks for a new place in every test.
//   - open: opens the engine at its place. Opening it again is a restart: the engine closes what was open before, and
//     finds what it kept. An engine that keeps nothing returns the same value again.
//   - fault: a call that fails because the test wants it to, before or after it took effect.
//
// # Invariants
//
// The suites test what the comments of the interfaces promise and nothing else, so an engine that passes them can
// replace another one. A wrapper without a fault behaves like what it wraps.
//
// # What it does not do
//
// It does not look at how an engine keeps its data, and it does not measure.
package storagetest
