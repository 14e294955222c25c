//go:build race

package server

// raceEnabled reports whether the race detector is on, which multiplies the memory of a connection.
const raceEnabled = true
