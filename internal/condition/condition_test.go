package condition

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestCarry(t *testing.T) {
	then, now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 2, 0, 0, 0, 999, time.UTC)
	old := New("A", true, v1alpha1.ReasonStarted, "")
	old.LastTransitionTime = metav1.NewTime(then)
	tests := []struct {
		name string
		now  metav1.Condition
		want time.Time
	}{
		{"the same keeps its time", New("A", true, v1alpha1.ReasonStarted, ""), then},
		{"so does another reason and message", New("A", true, v1alpha1.ReasonReady, "x"), then},
		{"another status is new", New("A", false, v1alpha1.ReasonStarted, ""), now},
		{"so is unknown", Unknown("A", v1alpha1.ReasonNodeLost, ""), now},
		{"and another type", New("B", true, v1alpha1.ReasonStarted, ""), now},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := MergeTransitionTimes([]metav1.Condition{tt.now}, []metav1.Condition{old}, 7, now)[0]
			if !got.LastTransitionTime.Time.Equal(tt.want.Truncate(time.Second)) || got.ObservedGeneration != 7 {
				t.Errorf("time is %s, want %s; generation is %d, want 7", got.LastTransitionTime, tt.want, got.ObservedGeneration)
			}
		})
	}
}

func TestAsk(t *testing.T) {
	list := []metav1.Condition{New("A", true, v1alpha1.ReasonStarted, ""), Unknown("B", v1alpha1.ReasonNodeLost, "")}
	if !Is(list, "A", metav1.ConditionTrue) || Is(list, "A", metav1.ConditionFalse) || !Is(list, "B", metav1.ConditionUnknown) {
		t.Error("a condition does not have its status")
	}
	if Is(list, "C", metav1.ConditionFalse) || Is(list, "C", metav1.ConditionUnknown) || Is(list, "C", "") {
		t.Error("an absent condition has a status")
	}
	if Reason(list, "B") != v1alpha1.ReasonNodeLost || Reason(list, "C") != "" {
		t.Error("reasons are wrong")
	}
}

func TestShorten(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"a sentence", "all is well", "all is well"},
		{"lines", "one\ntwo", "one\ntwo"},
		{"escapes of a terminal", "a\x1b[31mb\x07\x7f", "a?[31mb??"},
		{"bytes that are no text", "a\xff\xfeb", "a??b"},
		{"what fits", strings.Repeat("a", maxMessage-3), strings.Repeat("a", maxMessage-3)},
		{"what does not", strings.Repeat("a", maxMessage+1), strings.Repeat("a", maxMessage-3) + "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Sanitize(tt.in)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func FuzzShorten(f *testing.F) {
	f.Add("all is well")
	f.Add(strings.Repeat("ä", maxMessage))
	f.Fuzz(func(t *testing.T, in string) {
		out := Sanitize(in)
		if len(out) > maxMessage || !utf8.ValidString(out) || strings.ContainsAny(out, "\x00\x1b\r\x7f") {
			t.Errorf("%q", out)
		}
		if Sanitize(out) != out {
			t.Errorf("%q is shortened again to %q", out, Sanitize(out))
		}
	})
}

func TestOf(t *testing.T) {
	list := []metav1.Condition{New("C", true, v1alpha1.ReasonStarted, ""), New("B", true, v1alpha1.ReasonStarted, ""), New("A", false, v1alpha1.ReasonPending, "")}
	if diff := cmp.Diff([]metav1.Condition{list[2], list[0]}, Of(list, []string{"C", "A", "D"})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if list[0].Type != "C" {
		t.Error("the list was sorted")
	}
}
