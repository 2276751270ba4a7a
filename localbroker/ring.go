package localbroker

// ring is a queue in a slice that grows as needed. The zero value is empty.
type ring[T any] struct {
	buf  []T // its length is a power of two
	head int
	n    int
}

func (r *ring[T]) len() int { return r.n }

// at returns the i-th from the head.
func (r *ring[T]) at(i int) *T { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring[T]) push(v T) {
	if r.n == len(r.buf) {
		longer := make([]T, max(8, 2*len(r.buf)))
		for i := range r.n {
			longer[i] = *r.at(i)
		}
		r.buf, r.head = longer, 0
	}
	r.n++
	*r.at(r.n - 1) = v
}

func (r *ring[T]) pop() T {
	p := r.at(0)
	v := *p
	var none T
	*p = none
	r.head = (r.head + 1) & (len(r.buf) - 1)
	if r.n--; r.n == 0 && len(r.buf) > 64 {
		r.buf, r.head = nil, 0 // was long for a while
	}
	return v
}
