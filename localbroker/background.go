package localbroker

import "sync"

// background is what goes on beside connections and receipts until it has ended by
// itself. The zero value is ready.
type background struct {
	mu   sync.Mutex // guards what follows
	n    int
	over chan struct{} // to be closed when n gets to 0; nil while more may begin
}

// begin runs f. It reports false if nothing may begin any more. Unlike the Go of a
// sync.WaitGroup it may be called by anybody at any time.
func (b *background) begin(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over != nil && b.n == 0 {
		return false
	}
	b.n++
	go func() {
		defer b.end()
		f()
	}()
	return true
}

func (b *background) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n--; b.n == 0 && b.over != nil {
		close(b.over)
	}
}

// wait returns when all has ended that was begun, and by that. Then nothing may begin
// any more.
func (b *background) wait() {
	b.mu.Lock()
	b.over = make(chan struct{})
	if b.n == 0 {
		close(b.over)
	}
	over := b.over
	b.mu.Unlock()
	<-over
}
