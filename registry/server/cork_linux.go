package server

import (
	"net"
	"syscall"
)

// cork makes the kernel send full segments alone until it is taken off; then it sends the rest (tcp(7), TCP_CORK). What
// comes by sendfile costs both ends less that way. Whatever goes wrong, it is no more than a saving that is not made.
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
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, value) })
}
