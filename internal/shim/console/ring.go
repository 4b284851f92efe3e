package console

import (
	"bytes"
	"fmt"
	"sync"
)

// ring is a bounded queue of bytes that forgets the oldest when it is full.
type ring struct {
	mu      sync.Mutex
	changed sync.Cond
	data    bytes.Buffer
	size    int // of data, at most
	dropped int // bytes forgotten just before the oldest
	taken   bool
	ended   bool
}

func newRing(size int) *ring {
	// With twice the room it moves what it holds, and never grows; pages that were never used cost nothing.
	r := &ring{data: *bytes.NewBuffer(make([]byte, 0, 2*size)), size: size}
	r.changed.L = &r.mu
	return r
}

// Write adds data, which is at most as long as the ring is large. It never fails.
func (r *ring) Write(data []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := max(0, r.data.Len()+len(data)-r.size)
	r.data.Next(over)
	r.dropped += over
	r.changed.Broadcast()
	return r.data.Write(data)
}

// take waits for bytes and moves them into buf; where some were dropped it returns the mark instead. What it returned before
// counts as written now. It returns nothing at the end.
func (r *ring) take(buf []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taken = false
	r.changed.Broadcast()
	for r.data.Len() == 0 && !r.ended {
		r.changed.Wait()
	}
	r.taken = r.data.Len() > 0
	if r.taken && r.dropped > 0 {
		mark := fmt.Appendf(buf[:0], "\r\n[berth: %d bytes of console dropped]\r\n", r.dropped)
		r.dropped = 0
		return mark
	}
	n, _ := r.data.Read(buf) // nothing at the end
	if r.data.Len() == 0 {
		r.data.Reset() // a quiet console touches few pages
	}
	return buf[:n]
}

// close lets take return at the end of what there is.
func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.changed.Broadcast()
}

// drained waits until the end, when all has been taken and written.
func (r *ring) drained() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.ended || r.data.Len() > 0 || r.taken {
		r.changed.Wait()
	}
}
