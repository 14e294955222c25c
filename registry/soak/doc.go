// Package soak drives the real binary by real HTTP clients for as long as one likes, and judges what they saw: what
// clients see of tags and manifests must be what one registry that does one thing after the other could have answered,
// through restarts and crashes; what was acknowledged is there, whole, whoever collects garbage meanwhile and whichever
// system call fails. It has tests only.
//
// # Words
//
//   - history: the operations of a run, with the times of call and return.
//   - lost: an operation whose answer did not come, or was 5xx. It may have happened, until the process that it was
//     sent to was dead, or never.
//
// # Invariants
//
//  1. A test judges only what clients see on the wire.
//  2. The server runs as it is delivered: TLS and fsync are on.
//  3. No absolute speed is asserted.
//
// # Settings
//
// By default everything takes less than a minute. Environment variables make it longer:
//
//   - SOAK_TIME (duration, default 4s): how long the clients work; SOAK_TIME=10m wants go test -timeout 1h.
//   - SOAK_KILLS (default 12): how often TestKill kills the server.
//   - SOAK_FAULTS (default 1): how often TestSystemCalls goes through all its steps. It is there with -tags faults alone,
//     since it needs strace and the right to trace.
//   - SOAK_LOAD=1: 10,000 idle connections, 1,000 slow uploads and 6,000 aborted transfers instead of a tenth of that. It
//     takes some minutes, and the right to open 20,000 files.
//   - SOAK_TAGS (default 1000): how many tags TestSize starts a server on.
//   - SOAK_RACE=1: the server is built with the race detector, and any race it finds fails the test.
//   - SOAK_SEED (a whole number, default: the time): the choices of the clients; each test prints its own.
//
// # What it does not do
//
// It does not cut the power (storage's TestPowerCuts does), and it measures no throughput.
package soak
