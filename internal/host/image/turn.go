package image

import (
	"io"
	"sync"
	"time"
)

// patience is how long a stream is held back at each read: a node on which guests start all the time pulls slowly, but pulls.
const patience = 200 * time.Millisecond

// turns are rights to unpack, which needs a CPU and little else. There are half as many as the agent has CPUs: what unpacks
// to much for few bytes, as images of hostile tenants do, leaves the others to who looks after guests.
type turns struct {
	free     chan struct{} // has one for each that is taken
	patience time.Duration

	mu     sync.Mutex
	urgent int           // how many HoldBack
	calm   chan struct{} // closed when there is none
}

func newTurns(n int, patience time.Duration) *turns {
	calm := make(chan struct{})
	close(calm)
	return &turns{free: make(chan struct{}, n), patience: patience, calm: calm}
}

// HoldBack has little unpacked until done is called: something more urgent wants the CPUs.
func (c *Client) HoldBack() (done func()) { return c.turns.holdBack() }

func (t *turns) holdBack() (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.urgent++; t.urgent == 1 {
		t.calm = make(chan struct{})
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.urgent--; t.urgent == 0 {
			close(t.calm)
		}
	}
}

func (t *turns) take() {
	t.mu.Lock()
	calm := t.calm
	t.mu.Unlock()
	select {
	case <-calm:
	case <-time.After(t.patience):
	}
	t.free <- struct{}{}
}

func (t *turns) give() { <-t.free }

// turn is a stream's.
type turn struct {
	*turns
	has bool
}

// unpacking reads what is unpacked, in its turn.
type unpacking struct {
	*turn
	r io.Reader
}

func (u unpacking) Read(b []byte) (int, error) {
	u.take()
	u.has = true
	n, err := u.r.Read(b)
	u.has = false
	u.give()
	return n, err
}

// waiting reads what is to be unpacked, which may take long to come: the turn is another's meanwhile.
type waiting struct {
	*turn
	r io.Reader
}

func (w waiting) Read(b []byte) (int, error) {
	if !w.has {
		return w.r.Read(b)
	}
	w.give()
	n, err := w.r.Read(b)
	w.take()
	return n, err
}
