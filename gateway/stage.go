package gateway

import (
	"context"
	"fmt"
	"sync"
)

// stage is the parts of a gateway that are stopped together.
type stage struct {
	ctx    context.Context
	cancel context.CancelFunc
	fail   context.CancelCauseFunc
	parts  sync.WaitGroup
}

// partError says that a part has ended before it was told to.
type partError struct {
	part string
	err  error
}

func (e *partError) Error() string { return fmt.Sprintf("%s: %v", e.part, e.err) }
func (e *partError) Unwrap() error { return e.err }

// newStage returns a stage that outlives ctx until it is stopped. fail is told of
// a part that ends before.
func newStage(ctx context.Context, fail context.CancelCauseFunc) *stage {
	s := &stage{fail: fail}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// run starts a part, which returns nil when its context ends.
func (s *stage) run(part string, run func(context.Context) error) {
	s.parts.Go(func() {
		if err := run(s.ctx); err != nil {
			s.fail(&partError{part, err})
		}
	})
}

// stop ends the parts and waits for them.
func (s *stage) stop() {
	s.cancel()
	s.parts.Wait()
}
