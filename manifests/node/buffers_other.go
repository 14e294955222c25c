//go:build !linux

package node

import "net"

// boundBuffers does nothing here.
func boundBuffers(net.Conn, bool) {}
