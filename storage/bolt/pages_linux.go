package bolt

import (
	"syscall"

	bbolt "go.etcd.io/bbolt"
)

// forgetPages gives back the pages of the journal's memory map that were read. They stay in the kernel's cache of the
// file, so another look at one does not read the disk; but they no longer count as memory of the process, which needs
// all of them once, when it starts, and hardly any afterwards. The transaction keeps the map where it is. If the kernel
// refuses, nothing is lost.
func forgetPages(tx *bbolt.Tx) {
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, tx.DB().Info().Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
}
