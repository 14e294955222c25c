package server

import (
	"net"
	"syscall"
)

// unsent is how many bytes the kernel keeps of what may not be sent yet, for one connection.
const unsent = 128 << 10

// tcpNotSentLowat is TCP_NOTSENT_LOWAT of tcp(7), which package syscall does not have.
const tcpNotSentLowat = 0x19

// boundUnsent bounds what the kernel keeps of a connection whose client does not read. Otherwise it takes up to 4 MiB
// (net.ipv4.tcp_wmem), which count as memory of the container: 500 clients would take 1.5 GiB. What is under way to a
// client that reads is not bounded, so that a long way takes no longer. Errors are ignored: an old kernel cannot do it.
func boundUnsent(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, unsent)
	})
}
