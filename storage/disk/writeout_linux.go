package disk

import (
	"os"
	"syscall"
)

// startWriteOut asks the kernel to start writing a part of a file to the disk, so that the closing fsync does not have
// to wait for all of it. It makes nothing durable. A failure does not matter: fsync will report it.
func startWriteOut(f *os.File, offset, length int64) {
	const syncFileRangeWrite = 2 // SYNC_FILE_RANGE_WRITE of sync_file_range(2)
	_ = syscall.SyncFileRange(int(f.Fd()), offset, length, syncFileRangeWrite)
}
