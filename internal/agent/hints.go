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
	mu       sync.Mutex
	memories map[types.UID]plan.Memory
	agents   map[types.UID]*guestInfo
	ends     map[types.UID]plan.End
	sights   map[types.UID]sight
}

// sight is what could be seen of a guest from afar when it was last looked at.
type sight struct {
	what string
	at   time.Time
}

// fullLook is how often a guest is looked at that is the same from afar.
const fullLook = 5 * time.Minute

func newHints() *hints {
	return &hints{memories: map[types.UID]plan.Memory{}, agents: map[types.UID]*guestInfo{}, ends: map[types.UID]plan.End{}, sights: map[types.UID]sight{}}
}

// memory is what the last look at a guest left.
func (h *hints) memory(uid types.UID) plan.Memory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.memories[uid]
}

func (h *hints) remember(uid types.UID, m plan.Memory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.memories[uid] = m
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
	if runs && it.due(now) {
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

// saw remembers what could be seen from afar of a guest that runs well.
func (h *hints) saw(uid types.UID, what string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sights[uid] = sight{what, now}
}

// unseen has a guest looked at however it is from afar.
func (h *hints) unseen(uid types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sights, uid)
}

// isNew: a guest is not what it was when it was last looked at, or that was long ago, or its agent is to be asked again.
func (h *hints) isNew(uid types.UID, what string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, ok := h.sights[uid]
	agent := h.agents[uid]
	return !ok || last.what != what || now.Sub(last.at) >= fullLook || now.Before(last.at) || agent != nil && agent.due(now)
}

// forget drops all about a guest that is gone from this node.
func (h *hints) forget(uid types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.memories, uid)
	delete(h.agents, uid)
	delete(h.ends, uid)
	delete(h.sights, uid)
}
