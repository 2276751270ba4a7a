//go:build !unix

package gateway

// diskFree is not known on this system.
func diskFree(string) (share float64, ok bool) { return 0, false }
