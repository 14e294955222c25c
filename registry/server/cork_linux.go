package server

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// cork makes the kernel send only full segments until cork is called with on=false; then it sends the rest (tcp(7),
// TCP_CORK). Sending a file costs both ends less that way. Errors are ignored, because it only saves work.
func cork(c net.Conn, on bool) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	value := 0
	if on {
		value = 1
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, value)
	})
}

// unacknowledged returns how many bytes, FIN included, the client's machine has not acknowledged (tcp(7), SIOCOUTQ); 0
// if that cannot be found out, or the connection is closed: after a reset by the client, the kernel keeps the last
// count.
func unacknowledged(c net.Conn) (n int) {
	t, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Control(func(fd uintptr) {
		const closed = 7 // TCP_CLOSE of the kernel's tcp_states.h
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.State != closed {
			n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		}
	})
	if err != nil {
		return 0
	}
	return n
}
