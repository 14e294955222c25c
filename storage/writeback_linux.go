package storage

import (
	"os"
	"syscall"
)

// writeBack asks the kernel to begin writing a part of a file, so that the closing fsync does not have to wait for all
// of it. It makes nothing durable, and its failure means nothing: fsync will tell.
func writeBack(f *os.File, offset, length int64) {
	const syncFileRangeWrite = 2 // SYNC_FILE_RANGE_WRITE of sync_file_range(2)
	_ = syscall.SyncFileRange(int(f.Fd()), offset, length, syncFileRangeWrite)
}
