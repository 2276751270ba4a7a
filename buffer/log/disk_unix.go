//go:build unix

package log

import "golang.org/x/sys/unix"

// diskBytes is the room a file takes (st_blocks), which for a sparse file is
// less than its length.
func diskBytes(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512 // stat(2): in units of 512 bytes
}
