//go:build !race

package localbroker

const slower = 1
