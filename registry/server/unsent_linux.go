package server

import (
	"net"
	"syscall"
)

const (
	// unsent is how many bytes that may not be sent yet the kernel buffers for one connection: enough to send on while
	// the process is not scheduled.
	unsent = 128 << 10
	// unsentOfFew is that of a connection that is opened while few are open, and fewConns is how many these are. Large
	// blobs then take a fifth less processor time, as the process waits for room less often.
	unsentOfFew = 1 << 20
	fewConns    = 32
)

// tcpNotSentLowat is TCP_NOTSENT_LOWAT of tcp(7), which package syscall does not have.
const tcpNotSentLowat = 0x19

// boundUnsent bounds the send buffer of a connection whose client does not read, given how many are open. Otherwise it
// grows to 4 MiB (net.ipv4.tcp_wmem), which count as memory of the container: 500 clients would take 1.5 GiB. Bytes
// that are sent and not yet acknowledged are not bounded, so that a connection with a long round-trip time is not
// slower. Errors are ignored: the connection works without the bound.
func boundUnsent(c net.Conn, open int64) {
	bound := unsent
	if open <= fewConns {
		bound = unsentOfFew
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
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, bound)
	})
}
