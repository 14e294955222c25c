package server

import (
	"net"
	"syscall"
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
