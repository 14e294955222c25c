//go:build !linux

package socket

import "net"

// Cork does nothing where the kernel does not have TCP_CORK, nor do the others below.
func Cork(net.Conn, bool) {}

// BoundUnsent does nothing here.
func BoundUnsent(net.Conn, int) {}

// BoundUnread does nothing here.
func BoundUnread(net.Conn, int) {}

// FreeUnread does nothing here.
func FreeUnread(net.Conn, int) {}

// Unacknowledged returns 0, for not known.
func Unacknowledged(net.Conn) int { return 0 }
