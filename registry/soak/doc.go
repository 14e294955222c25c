// Package soak has tests of the whole binary; see main_test.go for the short ones. It runs the program, drives it
// with HTTP clients for as long as the settings say, and judges their answers: they must be those of a registry that
// carries out one operation after the other, also through restarts and crashes. Acknowledged content must stay
// intact, while garbage is collected and whichever system call fails.
//
// # Words
//
//   - history: the operations of a run, with the times of call and return.
//   - lost: an operation whose answer did not arrive, or was 5xx. It may have happened at any time until the process
//     that it was sent to was dead, or never.
//
// # Invariants
//
//  1. A test judges only what clients receive.
//  2. The server runs as users run it: with TLS and fsync.
//  3. No test asserts an absolute speed.
//
// # Settings
//
// By default everything takes less than a minute. Environment variables make it longer:
//
//   - SOAK_TIME (duration, default 4s): how long the clients work; SOAK_TIME=10m needs go test -timeout 1h.
//   - SOAK_KILLS (default 12): how often TestKill kills the server.
//   - SOAK_FAULTS (default 1): how often TestSystemCalls goes through all its steps. It is built with -tags faults
//     only, because it needs strace and permission to trace.
//   - SOAK_LOAD=1: 10,000 idle connections, 1,000 slow uploads and 6,000 aborted transfers instead of about a tenth of
//     that. It takes some minutes and needs permission to open 20,000 files.
//   - SOAK_TAGS (default 1000): how many tags the registry of TestSize has.
//   - SOAK_ABUSE=full: the attacks of TestAbuse with all their connections and requests instead of a part of them. It
//     is built with -tags abuse only, and needs permission to open 20,000 files. See abuse_test.go.
//   - SOAK_ETCD, SOAK_VERSITYGW: the servers of TestReplicas and TestReplicasAreLinearizable, which are built with
//     -tags replicas only: three processes of the program on etcd and S3. SOAK_KILLS and SOAK_TIME count for them as
//     well.
//   - SOAK_BINARY: the program to test; by default the tests build it.
//   - SOAK_RACE=1: the server is built with the race detector; a race fails the test.
//   - SOAK_SEED (a whole number, default: the time): determines the choices of the clients; each test logs it.
//
// # What it does not do
//
// It does not cut the power (TestPowerCuts of package storage does), and it does not measure throughput.
package soak
