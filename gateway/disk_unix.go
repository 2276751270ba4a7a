//go:build unix

package gateway

import "golang.org/x/sys/unix"

// diskFree is the share of a folder's disk that is free for this user.
func diskFree(dir string) (share float64, ok bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Blocks == 0 {
		return 0, false
	}
	return float64(st.Bavail) / float64(st.Blocks), true
}
