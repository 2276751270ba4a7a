//go:build unix

package log

import (
	"os"

	"golang.org/x/sys/unix"
)

// DiskBytes is the room a file takes (st_blocks), which for a sparse file is
// less than its length.
func DiskBytes(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512 // stat(2): in units of 512 bytes
}

// mapFile maps a file for reading. It must be read inside Guard.
func mapFile(path string) (p []byte, unmap func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if fi.Size() == 0 {
		return nil, func() error { return nil }, nil
	}
	p, err = unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	return p, func() error { return unix.Munmap(p) }, nil
}

// Free is the room that is left on the disk of a folder for this user.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
