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
// Both are empty if it takes all that the guest needs, and while it has not spoken.
func shimProblem(h Have) (v1alpha1.Reason, string) {
	switch {
	case h.ShimBroken:
		return v1alpha1.ReasonShimProtocolError, shimBroken
	case h.Shim == nil || len(h.Shim.Lacks) == 0:
		return "", ""
	}
	return v1alpha1.ReasonShimOutdated, fmt.Sprintf(
		"the berth's shim is older than the node's agent: the guest runs without what it does not take (%s), or with what an older agent gave it; change spec.restartedAt to restart the guest in a new berth",
		strings.Join(h.Shim.Lacks, ", "))
}
