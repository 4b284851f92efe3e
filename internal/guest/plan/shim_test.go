package plan

import (
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestShimOutdated(t *testing.T) {
	const end = ", or with what an older agent gave it; change spec.restartedAt to restart the guest in a new berth"
	for name, c := range map[string]struct {
		shim    *Shim
		reason  v1alpha1.Reason
		message string
	}{
		"there is no shim, or it has not spoken": {},
		"it does all":                            {shim: &Shim{Attached: true}},
		"it lacks one kind":                      {&Shim{Lacks: []string{"dhcp"}}, v1alpha1.ReasonShimOutdated, "the berth's shim is older than the node's agent: the guest runs without what it does not take (dhcp)" + end},
		"it lacks two":                           {&Shim{Attached: true, Lacks: []string{"dhcp", "guest"}}, v1alpha1.ReasonShimOutdated, "the berth's shim is older than the node's agent: the guest runs without what it does not take (dhcp, guest)" + end},
	} {
		if reason, message := shimProblem(Have{Shim: c.shim}); reason != c.reason || message != c.message {
			t.Errorf("%s: %q, %q; want %q, %q", name, reason, message, c.reason, c.message)
		}
	}
}
