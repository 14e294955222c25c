//go:build !linux

package bench

import "net"

// discard is for Linux alone.
func discard(net.Conn, int64, []byte) (ok bool, err error) { return false, nil }
