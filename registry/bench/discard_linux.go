package bench

import (
	"io"
	"net"
	"syscall"
)

// discard takes n bytes from a connection without copying them out of the kernel (tcp(7), MSG_TRUNC). Copying a large
// body costs more than a server needs to send it from a file. ok: it can be done with such a connection.
func discard(c net.Conn, n int64, buf []byte) (ok bool, err error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return false, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false, nil
	}
	for n > 0 && err == nil {
		got, failure := 0, error(nil)
		err = raw.Read(func(fd uintptr) bool {
			got, _, failure = syscall.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], syscall.MSG_TRUNC)
			return failure != syscall.EAGAIN && failure != syscall.EINTR
		})
		switch {
		case err != nil:
		case failure != nil:
			err = failure
		case got <= 0:
			err = io.ErrUnexpectedEOF
		}
		n -= int64(max(got, 0))
	}
	return true, err
}
