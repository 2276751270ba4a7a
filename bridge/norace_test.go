//go:build !race

package bridge

const slower = 1
