package console

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ring is a bounded queue of bytes that forgets the oldest when it is full.
type ring struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte
	start   int // of the oldest byte
	length  int
	dropped int // bytes forgotten just before the oldest
	ended   bool
}

func newRing(size int) *ring {
	// Beside the heap: there, its size alone would begin a garbage collection at most starts, which costs the shim 400 KiB for good.
	data, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		data = make([]byte, size)
	}
	r := &ring{data: data}
	r.changed.L = &r.mu
	return r
}

// Write adds data, which is at most as long as the ring is large. It never fails.
func (r *ring) Write(data []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if over := r.length + len(data) - len(r.data); over > 0 {
		r.start = (r.start + over) % len(r.data)
		r.length -= over
		r.dropped += over
	}
	at := (r.start + r.length) % len(r.data)
	n := copy(r.data[at:], data)
	copy(r.data, data[n:])
	r.length += len(data)
	r.changed.Broadcast()
	return len(data), nil
}

// take waits for bytes and moves them into buf; where some were dropped it returns the mark instead. It returns nothing at the
// end.
func (r *ring) take(buf []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.length == 0 && !r.ended {
		r.changed.Wait()
	}
	if r.length == 0 {
		return nil
	}
	if r.dropped > 0 {
		mark := fmt.Appendf(buf[:0], "\r\n[berth: %d bytes of console dropped]\r\n", r.dropped)
		r.dropped = 0
		return mark
	}
	n := copy(buf[:min(len(buf), r.length)], r.data[r.start:])
	r.start = (r.start + n) % len(r.data)
	r.length -= n
	if r.length == 0 {
		r.start = 0 // a quiet console touches few pages
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
