package agent

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// hints are what is worth remembering of guests and can be lost.
type hints struct {
	mu      sync.Mutex
	blocked map[types.UID]time.Time
	guests  map[types.UID]*v1alpha1.GuestInfo
	ends    map[types.UID]plan.End
}

func newHints() *hints {
	return &hints{blocked: map[types.UID]time.Time{}, guests: map[types.UID]*v1alpha1.GuestInfo{}, ends: map[types.UID]plan.End{}}
}

// blockedFor is how long ago the guest was first seen as blocked.
func (h *hints) blockedFor(uid types.UID, is bool, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	since, was := h.blocked[uid]
	switch {
	case !is:
		delete(h.blocked, uid)
		return 0
	case !was:
		h.blocked[uid] = now
		return 0
	}
	return now.Sub(since)
}

// info is what the guest agent told; it is forgotten when the agent goes, and then asked again.
func (h *hints) info(uid types.UID, connected bool) *v1alpha1.GuestInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !connected {
		delete(h.guests, uid)
	}
	return h.guests[uid]
}

func (h *hints) tell(uid types.UID, info *v1alpha1.GuestInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[uid] = info
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
