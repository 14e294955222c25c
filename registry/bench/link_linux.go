package bench

import (
	"io"
	"net"
	"syscall"
)

// readDiscard receives up to len(b) bytes like Read, but leaves b as it is if the connection is TCP without TLS: the
// kernel drops them instead of copying them (tcp(7), MSG_TRUNC). Copying a large body costs the generator more than
// sending it from a file costs the server.
func readDiscard(c net.Conn, b []byte) (n int, err error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c.Read(b)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failure error
	err = raw.Read(func(fd uintptr) (done bool) {
		n, _, failure = syscall.Recvfrom(int(fd), b, syscall.MSG_TRUNC)
		return failure != syscall.EAGAIN && failure != syscall.EINTR
	})
	switch {
	case err != nil:
		return 0, err
	case failure != nil:
		return 0, failure
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
