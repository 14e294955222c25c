package server

import (
	"net"
	"syscall"
)

const (
	// unsent is how many bytes that may not be sent yet the kernel buffers for one connection: enough to send on while
	// the process is not scheduled.
	unsent = 128 << 10
	// unsentOfFew is that of a connection that is opened while at most fewConns are open. Large blobs then take a fifth
	// less processor time, as the process waits for room less often.
	unsentOfFew = 1 << 20
	// roomy is the receive buffer of a narrow connection while a body is read, to begin with. The kernel doubles it.
	roomy = 64 << 10
)

// Options that package syscall does not have: TCP_NOTSENT_LOWAT of tcp(7), and SO_BUF_LOCK (Linux 5.14).
const (
	tcpNotSentLowat = 0x19
	soBufLock       = 0x48
)

// boundUnsent bounds the send buffer of a connection whose client does not read, given how many are open. Otherwise it
// grows to 4 MiB (net.ipv4.tcp_wmem), which count as memory of the container: 500 clients would take 1.5 GiB. Bytes
// that are sent and not yet acknowledged are not bounded, so that a connection with a long round-trip time is not
// slower. Errors are ignored: the connection works without the bound.
func boundUnsent(c net.Conn, open int64) {
	bound := unsent
	if open <= fewConns {
		bound = unsentOfFew
	}
	control(c, func(fd int) { _ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpNotSentLowat, bound) })
}

// boundUnread bounds the receive buffer of a connection. Otherwise the kernel keeps 128 KiB (net.ipv4.tcp_rmem) of what
// a client sends that does not read its answer: 2,000 of them took 200 MiB of the container's memory. Errors are
// ignored, as in boundUnsent.
func boundUnread(c net.Conn) {
	control(c, func(fd int) { _ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, unread) })
}

// freeUnread lets the receive buffer grow again as the body of a request arrives, so that a connection with a long
// round-trip time is not slower. Without SO_BUF_LOCK it stays at roomy.
func freeUnread(c net.Conn) {
	control(c, func(fd int) {
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, roomy)
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soBufLock, 0)
	})
}

// control calls f with the file descriptor of a TCP connection.
func control(c net.Conn, f func(fd int)) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
