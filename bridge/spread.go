package bridge

import "hash/fnv"

// SpreadOver says which of n connections, from 0, carries what is known by a key: the
// id of a device, for topics outside devices/ the upstream topic. It must stay the same
// for ever, or a restart would put a device's messages behind those of another
// connection: FNV-1a with 64 bits, mod n.
func SpreadOver(n int, key string) int {
	if n <= 1 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // it cannot fail
	return int(h.Sum64() % uint64(n))
}
