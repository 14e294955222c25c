//go:build !linux

package storage

import bolt "go.etcd.io/bbolt"

// forgetPages gives pages of the journal's memory map back where the system has a call for that.
func forgetPages(*bolt.Tx) {}
