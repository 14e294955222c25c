//go:build !linux

package server

import "net"

// cork does nothing where the kernel does not have TCP_CORK.
func cork(net.Conn, bool) {}

// unacknowledged returns 0, for not known.
func unacknowledged(net.Conn) int { return 0 }

// boundUnsent does nothing here, nor do boundUnread and freeUnread.
func boundUnsent(net.Conn, int64) {}
func boundUnread(net.Conn)        {}
func freeUnread(net.Conn)         {}
