package storage

import (
	"syscall"

	bolt "go.etcd.io/bbolt"
)

// forgetPages gives the pages of the journal's memory map back that were read. They stay in the kernel's cache of the file,
// so that the next look at one is no reading of the disk; but they do not count as memory of the process, which needs
// all of them once, when it starts, and hardly any afterwards. The transaction keeps the map where it is. That the
// kernel refuses means nothing.
func forgetPages(tx *bolt.Tx) {
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, tx.DB().Info().Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
}
