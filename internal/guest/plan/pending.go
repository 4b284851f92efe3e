package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

// Bounds of status.pendingChanges, in items, and of a path in it, in bytes.
const (
	maxPending = 64
	maxPath    = 512
)

// pending is what of the spec the guest was not started with, and has not taken since, and the condition that says so; nil
// without a guest, which will start with the spec as it is, and while nothing is known. failure is of the last step.
func pending(w Want, h Have, m Memory, failure error, now time.Time) ([]v1alpha1.PendingChange, *metav1.Condition) {
	if h.Unknown != nil || h.StartUnknown != nil || !h.guest() {
		return nil, nil
	}
	reason, message := shimProblem(h)
	parts := []string{message}
	changes, waits := slices.Clone(h.Pending), []v1alpha1.PendingChange{}
	for _, c := range liveChanges(w, h, m, now) {
		change := v1alpha1.PendingChange{Path: c.path(), Effect: v1alpha1.EffectLive}
		changes = slices.DeleteFunc(changes, func(p v1alpha1.PendingChange) bool { return p.Path == change.Path })
		if failure != nil && c.steps != nil {
			c.why = failure.Error()
		}
		if c.why != "" { // else it is done at once
			waits, parts = append(waits, change), append(parts, change.Path+": "+c.why)
		}
	}
	if len(changes) > 0 {
		parts = append(parts, "changes wait for the guest's next restart (change spec.restartedAt to restart it now): "+describe(changes))
	}
	changes = append(changes, waits...)
	switch {
	case len(changes) > 0:
		reason = v1alpha1.ReasonChangesPending
	case reason == "":
		return nil, new(condition.New(v1alpha1.ConditionUpToDate, true, v1alpha1.ReasonUpToDate, ""))
	}
	parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	return bounded(changes), new(condition.New(v1alpha1.ConditionUpToDate, false, reason, strings.Join(parts, "; ")))
}

// bounded cuts changes, in place, to what a status may hold.
func bounded(changes []v1alpha1.PendingChange) []v1alpha1.PendingChange {
	for i := range changes {
		changes[i].Path = changes[i].Path[:min(len(changes[i].Path), maxPath)]
	}
	changes = slices.CompactFunc(changes, func(a, b v1alpha1.PendingChange) bool { return a.Path == b.Path })
	return changes[:min(len(changes), maxPending)]
}

// describe writes changes for people.
func describe(changes []v1alpha1.PendingChange) string {
	var list []string
	for _, c := range changes {
		what := c.Path
		if c.From != "" || c.To != "" {
			what += fmt.Sprintf(" (%s to %s)", cmp.Or(c.From, "unset"), cmp.Or(c.To, "unset"))
		}
		list = append(list, what)
	}
	return strings.Join(list, ", ")
}
