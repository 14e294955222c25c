// Package maintenance owns the data directory of a server, opens the engines that settings name (see [Engines]), also
// for migrations, and does the work on them that goes on beside the requests.
//
// # Words
//
//   - collect, scrub, quarantine, backup: as in package storage.
//   - retention: rules that remove tags and manifests after a time; see package retention.
//   - hold: what makes a run of retention only report what it would remove.
//   - job: work that an administrator asks a running server to do now; see package admin.
//   - reserve: the space of the file system that uploads leave free.
//
// # Invariants
//
//  1. The journal is opened first, because its lock is the lock of the directory: a second process changes nothing in a
//     data directory that is in use.
//  2. Work that can wait starts a while after the server is ready, so that it does not slow down the clients that
//     waited for the start.
//  3. A failure of this work is logged and tried again at the next interval. It never ends the server.
//
// # What it does not do
//
// It answers no client of the registry, and it does not decide what the collector or a rule removes.
package maintenance
