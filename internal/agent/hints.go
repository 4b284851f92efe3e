package agent

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/qga"
)

// hints are what is worth remembering of guests and can be lost.
type hints struct {
	mu      sync.Mutex
	blocked map[types.UID]time.Time
	lost    map[types.UID]time.Time
	agents  map[types.UID]*guestInfo
	ends    map[types.UID]plan.End
}

func newHints() *hints {
	return &hints{blocked: map[types.UID]time.Time{}, lost: map[types.UID]time.Time{}, agents: map[types.UID]*guestInfo{}, ends: map[types.UID]plan.End{}}
}

// blockedFor is how long ago the guest was first seen as blocked.
func (h *hints) blockedFor(uid types.UID, is bool, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return lasts(h.blocked, uid, is, now)
}

// lostFor is how long ago the guest was first seen without its QEMU.
func (h *hints) lostFor(uid types.UID, is bool, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return lasts(h.lost, uid, is, now)
}

// lasts notes since when something is so, and returns for how long.
func lasts(since map[types.UID]time.Time, uid types.UID, is bool, now time.Time) time.Duration {
	first, was := since[uid]
	switch {
	case !is:
		delete(since, uid)
		return 0
	case !was:
		since[uid] = now
		return 0
	}
	return now.Sub(first)
}

// agent is what the guest's agent has told since it connected, and, if it is time to ask it, where the answer goes.
// A guest whose CPUs stand still is not asked.
func (h *hints) agent(uid types.UID, connected, runs bool, now time.Time) (known guestInfo, ask *guestInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !connected {
		delete(h.agents, uid)
		return known, nil
	}
	it := h.agents[uid]
	if it == nil {
		it = &guestInfo{wait: firstInfo}
		h.agents[uid] = it
	}
	if runs && !it.asking && !now.Before(it.again) {
		it.asking, ask = true, it
	}
	return *it, ask
}

// answer takes note of what a guest's agent told, and tells whether that is new. An agent that has answered once and
// then does not still is the same agent.
func (h *hints) answer(it *guestInfo, told qga.Info, err error, now time.Time) (isNew bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	it.asking, it.again = false, now.Add(it.wait)
	it.wait = min(2*it.wait, lastInfo)
	if err != nil {
		return false
	}
	info := infoOf(told)
	isNew = !it.answered || *it.info != *info
	it.answered, it.info = true, info
	return isNew
}

// ended remembers the verdict on a guest, which nobody can find again once its container is gone.
func (h *hints) ended(uid types.UID, end plan.End) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends[uid] = end
}

// verdict is what was remembered of the guest's last end.
func (h *hints) verdict(uid types.UID) (plan.End, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	end, ok := h.ends[uid]
	return end, ok
}

// begin forgets a guest's last end: it lives again.
func (h *hints) begin(uid types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ends, uid)
}

// forget drops all about a guest that is gone from this node.
func (h *hints) forget(uid types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.blocked, uid)
	delete(h.lost, uid)
	delete(h.agents, uid)
	delete(h.ends, uid)
}
