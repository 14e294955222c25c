//go:build !linux

package bench

import "net"

// readDiscard is Read where the kernel cannot discard.
func readDiscard(c net.Conn, b []byte) (int, error) { return c.Read(b) }
