package condition

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// maxMessage bounds a message, in bytes: it may carry words of a registry or a guest.
const maxMessage = 1024

// New makes a condition that is true or false. Without a message it has the reason's own words.
func New(kind string, holds bool, reason v1alpha1.Reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if holds {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: string(reason), Message: Sanitize(cmp.Or(message, reason.When()))}
}

// Unknown makes a condition of which nothing can be said now.
func Unknown(kind string, reason v1alpha1.Reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: string(reason), Message: Sanitize(message)}
}

// MergeTransitionTimes completes wanted with the generation, and with the transition times of
// those in have whose status is the same; now is that of the others.
func MergeTransitionTimes(wanted, have []metav1.Condition, generation int64, now time.Time) []metav1.Condition {
	for i := range wanted {
		c := &wanted[i]
		c.ObservedGeneration = generation
		c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
		if old := Find(have, c.Type); old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	return wanted
}

// ByType is the order in which statuses have their conditions.
func ByType(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) }

// Of are those conditions of a list that have one of these types, in the order of their types.
func Of(list []metav1.Condition, types []string) []metav1.Condition {
	part := slices.DeleteFunc(slices.Clone(list), func(c metav1.Condition) bool { return !slices.Contains(types, c.Type) })
	slices.SortFunc(part, ByType)
	return part
}

// Is tells whether the condition of that type has that status. An absent one has none.
func Is(list []metav1.Condition, kind string, status metav1.ConditionStatus) bool {
	return meta.IsStatusConditionPresentAndEqual(list, kind, status)
}

// Find is the condition of that type, all zero if it is absent.
func Find(list []metav1.Condition, kind string) (c metav1.Condition) {
	if found := meta.FindStatusCondition(list, kind); found != nil {
		return *found
	}
	return c
}

// Reason is the reason of the condition of that type, "" if it is absent.
func Reason(list []metav1.Condition, kind string) v1alpha1.Reason {
	return v1alpha1.Reason(Find(list, kind).Reason)
}

// Sanitize bounds a message and replaces what is not printable text.
func Sanitize(message string) string {
	clean := make([]rune, 0, min(len(message), maxMessage))
	size := 0
	for _, r := range message {
		if r == utf8.RuneError || r < ' ' && r != '\n' || r == 0x7f {
			r = '?'
		}
		if size += utf8.RuneLen(r); size > maxMessage-len("…") {
			return string(append(clean, '…'))
		}
		clean = append(clean, r)
	}
	return string(clean)
}
