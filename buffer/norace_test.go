//go:build !race

package buffer

const slower = 1
