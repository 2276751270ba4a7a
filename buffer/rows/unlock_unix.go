//go:build unix && !solaris && !aix

package rows

import (
	"os"
	"syscall"
)

// unlock gives up the lock of a file that bbolt has left mapped. Closing it does not: the
// mapping still refers to it.
func unlock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
