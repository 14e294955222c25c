//go:build !linux

package server

import "net"

// cork does nothing where the kernel does not have TCP_CORK.
func cork(net.Conn, bool) {}

// boundUnsent does nothing here.
func boundUnsent(net.Conn) {}
