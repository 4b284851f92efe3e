package virtualmachine

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxStarts is how many domains are started at once: as many as libvirtd takes calls for, and few enough that other
	// guests have workers left.
	maxStarts = 4
	// startTurn is how long a guest that waits keeps others from going first. Longer than the backoff of its loop.
	startTurn = 15 * time.Second
)

// starts are the domains being started. Namespaces share them: one whose guests start slowly has a slot less as soon as
// another's guest waits.
type starts struct {
	wake func(vm types.UID)
	now  func() time.Time

	mu      sync.Mutex
	running map[string]int // by namespace
	waiting []waitingStart // in order
}

type waitingStart struct {
	vm        types.UID
	namespace string
	until     time.Time
}

// begin takes a slot, which end gives back. If there is none for this guest, it waits, and is woken when there is.
func (s *starts) begin(vm types.UID, namespace string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.waiting = slices.DeleteFunc(s.waiting, func(w waitingStart) bool { return !now.Before(w.until) }) // they did not come back
	at := slices.IndexFunc(s.waiting, func(w waitingStart) bool { return w.vm == vm })
	total := 0
	for _, n := range s.running {
		total += n
	}
	if next := s.next(); total < maxStarts && (next == nil || s.running[namespace] <= s.running[next.namespace]) {
		s.running[namespace]++
		if at >= 0 {
			s.waiting = slices.Delete(s.waiting, at, at+1)
		}
		if total+1 < maxStarts {
			s.wakeNext()
		}
		return true
	}
	if at < 0 {
		at, s.waiting = len(s.waiting), append(s.waiting, waitingStart{vm: vm, namespace: namespace})
	}
	s.waiting[at].until = now.Add(startTurn)
	return false
}

// end gives a slot back, and wakes the guest whose turn it is.
func (s *starts) end(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[namespace]--; s.running[namespace] == 0 {
		delete(s.running, namespace)
	}
	s.wakeNext()
}

func (s *starts) wakeNext() {
	if next := s.next(); next != nil {
		s.wake(next.vm)
	}
}

// next is the guest whose turn it is: of those in the namespaces with the fewest slots the one that waits for longest.
func (s *starts) next() (next *waitingStart) {
	for i, w := range s.waiting {
		if next == nil || s.running[w.namespace] < s.running[next.namespace] {
			next = &s.waiting[i]
		}
	}
	return next
}
