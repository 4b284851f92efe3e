package plan

import (
	"cmp"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// Want is what the API asks of one guest on this node.
type Want struct {
	// VM is the guest's VirtualMachine; nil when the API server says that there is none of this UID.
	VM *v1alpha1.VirtualMachine
	// Machine is what it is to be on this host; zero without a VirtualMachine.
	Machine machine.Machine
	// Elsewhere: its status names another node, so nothing of it belongs here.
	Elsewhere bool
	// Berth is the pod that the VirtualMachine's status names, if it is bound to this node; nil otherwise.
	Berth *Berth
	// Vanished is the UID of the pod that the status names, if there is no such pod any more.
	Vanished types.UID
}

// Berth is what a berth's pod says of itself.
type Berth struct {
	UID     types.UID
	Created time.Time
	// Accepted is when kubelet took the pod on, by this host's clock; zero before.
	Accepted time.Time
	// Terminating: the pod is being deleted.
	Terminating bool
	// Completed: its container will not run again.
	Completed bool
	// NeverStarted: kubelet knows of no container of it that ran.
	NeverStarted bool
	// ProbeStarted: kubelet's startup probe has passed.
	ProbeStarted bool
	// Outdated are the changes of the spec that it cannot take: the guest's next start is in a new one.
	Outdated []v1alpha1.PendingChange
	// Mutation says how admission broke its promises, "" if it did not.
	Mutation string
	// LastExit is how kubelet says that its guest last ended, and when; nil if it says nothing.
	LastExit *Exit
}

// accepts: the guest may be started in the berth.
func (w *Want) accepts(h *Have) bool {
	return w.Berth != nil && !w.Berth.Terminating && !w.Berth.Completed && len(w.Berth.Outdated) == 0 && w.Berth.Mutation == "" &&
		h.UnsupportedRuntime == "" && !h.shimLacks() && w.wantsGuest()
}

// wantsGuest: the spec asks for a guest, running or paused.
func (w *Want) wantsGuest() bool {
	return w.VM != nil && w.VM.DeletionTimestamp.IsZero() && w.VM.Spec.State != v1alpha1.StateStopped
}

// Images are those that the guest needs here. A pull of any other is of no use.
func (w *Want) Images() []machine.Image {
	if !w.wantsGuest() || w.Elsewhere {
		return nil
	}
	return w.Machine.Images()
}

// ran: a guest is said to run or to be paused. If there is none it has ended, in the present berth or in a former one.
func (w *Want) ran() bool {
	conditions := w.VM.Status.Conditions
	return condition.Is(conditions, v1alpha1.ConditionRunning, metav1.ConditionTrue) ||
		condition.Reason(conditions, v1alpha1.ConditionRunning) == v1alpha1.ReasonPaused
}

// deleting: the VirtualMachine waits for its disks to be removed.
func (w *Want) deleting() bool { return w.VM != nil && !w.VM.DeletionTimestamp.IsZero() }

// paused: the vCPUs are to stand still.
func (w *Want) paused() bool { return w.VM != nil && w.VM.Spec.State == v1alpha1.StatePaused }

// grace is how long the guest may take to power off.
func (w *Want) grace() time.Duration {
	seconds := int64(60)
	if w.VM != nil {
		seconds = berth.GraceSeconds(w.VM) - berth.GraceMargin
	}
	return time.Duration(seconds) * time.Second
}

// startupLimit is how long the guest may run without passing its own startup probe, 0 if it has none.
func (w *Want) startupLimit() time.Duration {
	if w.VM == nil || w.VM.Spec.StartupProbe == nil {
		return 0
	}
	p := w.VM.Spec.StartupProbe
	// The API server's own defaults, which an embedded probe does not get.
	period, failures := cmp.Or(p.PeriodSeconds, 10), cmp.Or(p.FailureThreshold, 3)
	return time.Duration(p.InitialDelaySeconds+period*failures) * time.Second
}
