package socket

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cork makes the kernel send only full segments until Cork is called with on=false; then it sends the rest (tcp(7),
// TCP_CORK). Sending a file costs both ends less that way.
func Cork(c net.Conn, on bool) {
	value := 0
	if on {
		value = 1
	}
	control(c, func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, value) })
}

// BoundUnsent bounds how many bytes that may not be sent yet the kernel buffers. Otherwise it is up to 4 MiB
// (net.ipv4.tcp_wmem). Bytes that are sent and not yet acknowledged are not bounded, so that a connection with a long
// round-trip time is not slower (tcp(7), TCP_NOTSENT_LOWAT).
func BoundUnsent(c net.Conn, bytes int) {
	control(c, func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) })
}

// BoundUnread bounds how many bytes the kernel buffers that were received and are not read yet, to twice as many as
// given (socket(7), SO_RCVBUF). Otherwise it is 128 KiB to begin with, and up to 6 MiB (net.ipv4.tcp_rmem).
func BoundUnread(c net.Conn, bytes int) {
	control(c, func(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes) })
}

// FreeUnread ends what BoundUnread has begun: the buffer has twice as many bytes as given to begin with, and grows.
// Before Linux 5.14, which has SO_BUF_LOCK, it does not grow.
func FreeUnread(c net.Conn, bytes int) {
	control(c, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	})
}

// Unacknowledged returns how many bytes, FIN included, the other machine has not acknowledged (tcp(7), SIOCOUTQ); 0 if
// that cannot be found out, or the connection is closed: after a reset by the other machine, the kernel keeps the last
// count.
func Unacknowledged(c net.Conn) (n int) {
	control(c, func(fd int) {
		const closed = 7 // TCP_CLOSE of the kernel's tcp_states.h
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == closed {
			return
		}
		if n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil {
			n = 0
		}
	})
	return n
}

// control calls f with the file descriptor of a connection that has one.
func control(c net.Conn, f func(fd int)) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
