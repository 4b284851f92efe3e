package plan

import (
	"fmt"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// shimBroken says that the berth's shim did not keep to the protocol, whatever it has done: it may be a tenant's program.
const shimBroken = "the berth's shim did not keep to the agent's protocol, and the agent leaves it alone for some minutes at a time, so that the guest cannot be started in it or powered off: " +
	"change spec.restartedAt to restart the guest in a new berth; if it comes again, look in the pod for a program that is not Berth's"

// shimProblem is what is wrong with the shim of a guest that runs, as reason and message of UpToDate, which is False then.
func shimProblem(h Have) (v1alpha1.Reason, string) {
	if h.ShimBroken {
		return v1alpha1.ReasonShimProtocolError, shimBroken
	}
	return ShimOutdated(h.Shim)
}

// ShimOutdated says what a guest that runs needs and its berth's shim does not take, as reason and message of UpToDate,
// which is False then. Both are empty if it takes all, and while it has not spoken.
func ShimOutdated(s *Shim) (v1alpha1.Reason, string) {
	if s == nil || len(s.Lacks) == 0 {
		return "", ""
	}
	return v1alpha1.ReasonShimOutdated, fmt.Sprintf(
		"the berth's shim is older than the node's agent: the guest runs without what it does not take (%s), or with what an older agent gave it; change spec.restartedAt to restart the guest in a new berth",
		strings.Join(s.Lacks, ", "))
}
