//go:build !linux

package bolt

import bbolt "go.etcd.io/bbolt"

// forgetPages gives back pages of the journal's memory map, on systems that have a call for it.
func forgetPages(*bbolt.Tx) {}
