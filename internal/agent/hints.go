package agent

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// hints are what is worth remembering of guests and can be lost.
type hints struct {
	mu      sync.Mutex
	blocked map[types.UID]time.Time
	guests  map[types.UID]*v1alpha1.GuestInfo
}

func newHints() *hints {
	return &hints{blocked: map[types.UID]time.Time{}, guests: map[types.UID]*v1alpha1.GuestInfo{}}
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
