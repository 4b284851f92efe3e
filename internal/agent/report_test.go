package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// TestANewAgentIsSilent: it has nothing to write with, so any word of a libvirtd that it has not reached yet is one too many.
func TestANewAgentIsSilent(t *testing.T) {
	a := &Agent{now: time.Now}
	g := &guest{Want: plan.Want{VM: &v1alpha1.VirtualMachine{}}, writable: true}
	wait, err := a.report(t.Context(), g, plan.Have{Unknown: fmt.Errorf("looking up: %w", libvirtd.ErrNotYet)}, nil)
	if wait != 0 || err != nil {
		t.Errorf("%s, %v", wait, err)
	}
}
