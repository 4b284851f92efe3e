package plan

import (
	"fmt"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// ShimOutdated says what the berth's shim cannot do for its guest, as reason and message of UpToDate, which is False
// then. Both are empty if it does all, and while it has not spoken.
func ShimOutdated(s *Shim) (v1alpha1.Reason, string) {
	if s == nil || len(s.Lacks) == 0 {
		return "", ""
	}
	return v1alpha1.ReasonShimOutdated, fmt.Sprintf(
		"the berth's shim is older than the node's agent and cannot serve: %s; change spec.restartedAt to restart the guest in a new berth",
		strings.Join(s.Lacks, ", "))
}
