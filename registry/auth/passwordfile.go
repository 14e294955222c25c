package auth

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// readOnce has the passwords that were read from what can be read only once, such as a pipe, by path: the options are
// validated again with each reload of the configuration file, in this process.
var readOnce = struct {
	sync.Mutex
	passwords map[string]string
}{passwords: map[string]string{}}

// readPassword reads the file of the setting password-file: a regular file each time, anything else once. Errors: those
// of the file system; it is empty.
func readPassword(path string) (string, error) {
	// The lock is held while it is read, so that two callers do not share what comes out of a pipe.
	readOnce.Lock()
	defer readOnce.Unlock()
	info, err := os.Stat(path)
	// A pipe may be gone when it was read, as that of a shell's <(…).
	once := err != nil || !info.Mode().IsRegular()
	if password, ok := readOnce.passwords[path]; once && ok {
		return password, nil
	}
	b, err := os.ReadFile(path) // not files.Read, which wants a regular file
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" {
		return "", fmt.Errorf("password-file: %s is empty", path)
	}
	if once {
		readOnce.passwords[path] = password
	}
	return password, nil
}
