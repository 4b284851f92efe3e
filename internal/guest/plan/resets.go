package plan

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

// A guest that was reset resetLoop times within resetWindow is in a loop, until it was not for as long. An installation or
// an update resets it twice or three times.
const (
	resetLoop   = 5
	resetWindow = 10 * time.Minute
)

const resetLoopMessage = "the guest resets again and again: read its console with kubectl logs; status.resets counts"

// resets are how often the guest was reset since its start and when last, nil if it was not. A former agent's count, in the
// status, is what this agent's is added to.
func resets(w Want, h Have, m Memory) (int32, *metav1.Time) {
	had := &w.VM.Status
	switch count := m.resetsBefore + h.Resets; {
	case h.Unknown != nil:
		return had.Resets, had.LastReset
	case !h.guest() || count <= 0:
		return 0, nil
	case h.Resets == 0:
		return count, had.LastReset
	default:
		return count, new(metav1.NewTime(h.LatestResets[0]).Rfc3339Copy())
	}
}

// resetting: the guest resets in a loop. What an agent before this one found stands until the guest has run for a while.
func resetting(w Want, h Have, last *metav1.Time, now time.Time) bool {
	recent := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) < resetWindow }
	was := condition.Reason(w.VM.Status.Conditions, v1alpha1.ConditionRunning) == v1alpha1.ReasonGuestResetLoop
	return recent(h.LatestResets[resetLoop-1]) || was && last != nil && recent(last.Time)
}
