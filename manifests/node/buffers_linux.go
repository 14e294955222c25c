package node

import (
	"net"
	"syscall"
)

const (
	// unsent is how many bytes that may not be sent yet the kernel buffers for one connection, and unsentOfFew as long
	// as few have a slot.
	unsent      = 32 << 10
	unsentOfFew = 1 << 20
	// unread is how many bytes that are not read yet it buffers. The kernel doubles it.
	unread = 32 << 10
)

// tcpNotSentLowat is TCP_NOTSENT_LOWAT of tcp(7), which package syscall does not have.
const tcpNotSentLowat = 0x19

// boundBuffers bounds what the kernel keeps of a connection of which one end does not read. Otherwise it is up to 10
// MiB (net.ipv4.tcp_wmem and tcp_rmem), which count as memory of the container. Errors are ignored: the connection
// works without the bound.
func boundBuffers(c net.Conn, few bool) {
	if k, ok := c.(*conn); ok {
		c = k.Conn
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if few {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, unsentOfFew)
			return
		}
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, unsent)
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, unread)
	})
}
