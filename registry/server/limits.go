package server

import (
	"syscall"

	"github.com/rs/zerolog"
)

// otherFiles is the number of open files that are not connections or served on them: the journal, the log, uploads.
const otherFiles = 100

// connectionLimit returns the number of connections that may be open: want, or fewer if the process may not open enough
// files, which is logged. If want is 0, the number follows from memory and open files.
func connectionLimit(want int, logger zerolog.Logger) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		files.Cur = 1 << 62
	}
	if want == 0 {
		return connectionsWith(files.Cur, defaultConnections(Memory()))
	}
	n := connectionsWith(files.Cur, want)
	if n < want {
		logger.Info().Int("max-connections", n).Uint64("limit", files.Cur).
			Msg("max-connections lowered: open-file limit too low (ulimit -n)")
	}
	return n
}

// Requests returns how many requests of one kind may be under way: want, or as many as there are connections, if these
// are fewer. What one client may have is a share of it: a share of more places than there are connections would let one
// client take them all.
func (o *Options) Requests(want int) int {
	return min(want, connectionLimit(o.MaxConnections, zerolog.Nop()))
}

// connectionsWith returns how many connections, at most want, fit into a limit of open files: each takes two, itself
// and the file that is sent on it.
func connectionsWith(files uint64, want int) int {
	if files >= uint64(2*want+otherFiles) {
		return want
	}
	return max(1, (int(files)-otherFiles)/2)
}
