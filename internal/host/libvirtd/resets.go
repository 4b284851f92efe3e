package libvirtd

import (
	"sync"
	"time"
)

// Resets are how often a domain was reset (VIR_DOMAIN_EVENT_ID_REBOOT) in its present life, by its guest or from outside, as
// far as this Client was connected: libvirt counts none itself.
type Resets struct {
	Count int32
	// Latest are the times of the latest ones, the newest first; zero for those that were not.
	Latest [5]time.Time
}

// resetsTold is how often resets of one domain are told at most. Those between are told together, so long after the last.
const resetsTold = 4 * time.Second

// oneReset is within what time several events are one reset: a kernel that reboots asks for it by one way after the other,
// and QEMU tells of each.
const oneReset = 2 * time.Second

// resetLog counts resets by the domain's UUID.
type resetLog struct {
	mu   sync.Mutex
	byID map[string]*lifeResets
}

type lifeResets struct {
	life int32     // libvirt's ID of the domain, another one in each life
	told time.Time // or about to be
	Resets
}

// add counts a reset, and says whether to tell of it, and in how long: a guest in a loop resets many times a second.
func (l *resetLog) add(uuid string, life int32, at time.Time) (in time.Duration, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.byID[uuid]
	if r == nil || r.life != life {
		r = &lifeResets{life: life}
		if l.byID == nil {
			l.byID = map[string]*lifeResets{}
		}
		for other := range l.byID {
			if len(l.byID) < maxExits { // which only the events of ends that were missed can bring about
				break
			}
			delete(l.byID, other)
		}
		l.byID[uuid] = r
	}
	if since := at.Sub(r.Latest[0]); since >= 0 && since < oneReset {
		return 0, false
	}
	r.Count++
	copy(r.Latest[1:], r.Latest[:])
	r.Latest[0] = at
	if at.Before(r.told) {
		return 0, false
	}
	in = max(0, r.told.Add(resetsTold).Sub(at))
	r.told = at.Add(in)
	return in, true
}

// of returns the resets of a domain in this life.
func (l *resetLog) of(uuid string, life int32) Resets {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.byID[uuid]; r != nil && r.life == life {
		return r.Resets
	}
	return Resets{}
}

// forget is called at the end of a domain's life.
func (l *resetLog) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byID, uuid)
}
