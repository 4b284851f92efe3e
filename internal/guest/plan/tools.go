package plan

import (
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// toolsPatience is for how long a guest agent has been there, and no guest program has answered, before it is asked to
	// start that: cloud-init does so, where there is any, and comes later than a guest agent at some boots.
	toolsPatience = 20 * time.Second
	// toolsPause is how long one version of the guest program stands in the status before another does: the guest says which
	// it is, as often as it likes.
	toolsPause = time.Minute
)

// tools is what a Memory has of the guest program.
type tools struct {
	// missing: the guest agent is there, and nobody has started the guest program; see toolsMissing.
	missing time.Time
	// asked: the guest agent was asked to start it, since the guest's last reset, which was the one of that number.
	asked  bool
	resets int32
	// version is what the status says, since changed.
	version string
	changed time.Time
}

// afterLook is the memory after a look that showed domain and process.
func (t tools) afterLook(h Have, now time.Time) tools {
	if !h.guest() {
		return tools{}
	}
	if h.Resets != t.resets { // what ran in it is gone
		t.asked, t.resets, t.missing = false, h.Resets, time.Time{}
	}
	since(&t.missing, h.toolsMissing() && !t.asked, now)
	if t.changed.After(now) {
		t.changed = now
	}
	if t.pending(h) && (t.changed.IsZero() || now.Sub(t.changed) >= toolsPause) {
		t.version, t.changed = h.Shim.GuestTools, now
	}
	return t
}

// pending: the guest program has another version than the status says.
func (t tools) pending(h Have) bool {
	return h.Shim != nil && h.Shim.Attached && h.Shim.GuestTools != t.version
}

// toolsMissing: a guest agent can be asked to start the guest program, which is on a disk of the guest's, and nothing says
// that it runs. What answered before a reset says nothing of the time after.
func (h *Have) toolsMissing() bool {
	return h.Facts.Tools && h.AgentConnected && h.Domain == DomainRunning && h.Shim != nil && h.Shim.Attached && !h.Shim.Terminating &&
		(h.Shim.GuestTools == "" || h.Resets > 0)
}

// startTools adds to what is next that the guest agent starts the guest program, once, when it is time for that, or when it
// will be, and when the status may say another version.
func (t tools) startTools(next Next, h Have, now time.Time) (Next, tools) {
	if !t.missing.IsZero() && len(next.Steps) == 0 {
		if left := toolsPatience - now.Sub(t.missing); left > 0 {
			next.wakeIn(left)
		} else {
			next.Steps, t.asked, t.missing = []Step{StartTools{}}, true, time.Time{}
		}
	}
	if t.pending(h) {
		next.wakeIn(max(toolsPause-now.Sub(t.changed), time.Millisecond))
	}
	return next, t
}

// guestInfo is what guest agent and guest program tell. What the shim, which has not spoken yet, would say of the latter is
// what it has said.
func guestInfo(w Want, h Have, m Memory) *v1alpha1.GuestInfo {
	var info v1alpha1.GuestInfo
	if h.Guest != nil {
		info = *h.Guest
	}
	info.Tools = m.tools.version
	if had := w.VM.Status.Guest; had != nil && h.Shim == nil && h.guest() {
		info.Tools = had.Tools
	}
	if info == (v1alpha1.GuestInfo{}) {
		return nil
	}
	return &info
}
