package plan

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

// Bounds of status.pendingChanges, in items, and of a path in it, in bytes.
const (
	maxPending = 64
	maxPath    = 512
)

// pending is what of the spec the guest was not started with, and the condition that says so; nil without a guest, which
// will start with the spec as it is, and while nothing is known.
func pending(h Have) ([]v1alpha1.PendingChange, *metav1.Condition) {
	if h.Unknown != nil || h.StartUnknown != nil || !h.guest() {
		return nil, nil
	}
	reason, message := shimProblem(h)
	switch {
	case len(h.Pending) > 0:
		changes := "changes wait for the guest's next restart (change spec.restartedAt to restart it now): " + describe(h.Pending)
		reason, message = v1alpha1.ReasonChangesPending, strings.TrimPrefix(message+"; "+changes, "; ")
	case reason == "":
		return nil, new(condition.New(v1alpha1.ConditionUpToDate, true, v1alpha1.ReasonUpToDate, ""))
	}
	return bounded(h.Pending), new(condition.New(v1alpha1.ConditionUpToDate, false, reason, message))
}

// bounded cuts changes to what a status may hold.
func bounded(changes []v1alpha1.PendingChange) []v1alpha1.PendingChange {
	changes = slices.Clone(changes)
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
		switch {
		case c.From == "" && c.To == "":
			list = append(list, c.Path)
		default:
			list = append(list, fmt.Sprintf("%s (%s to %s)", c.Path, orUnset(c.From), orUnset(c.To)))
		}
	}
	return strings.Join(list, ", ")
}

func orUnset(value string) string {
	if value == "" {
		return "unset"
	}
	return value
}
