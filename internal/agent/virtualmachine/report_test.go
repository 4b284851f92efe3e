package virtualmachine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// TestANewAgentIsSilent: it has nothing to write with, so any word of a libvirtd that it has not reached yet is one too many.
func TestANewAgentIsSilent(t *testing.T) {
	r := &Reconciler{Options: Options{Now: time.Now}}
	g := &target{Want: plan.Want{VM: &v1alpha1.VirtualMachine{}}, writable: true}
	wait, err := r.report(t.Context(), g, &observed{Have: plan.Have{Unknown: fmt.Errorf("looking up: %w", libvirtd.ErrNotConnected)}}, plan.Memory{}, nil)
	if wait != 0 || err != nil {
		t.Errorf("%s, %v", wait, err)
	}
}

func TestAnnounce(t *testing.T) {
	running := func(c metav1.Condition) *v1alpha1.VirtualMachineStatus {
		return &v1alpha1.VirtualMachineStatus{Conditions: []metav1.Condition{c}}
	}
	const kind = v1alpha1.ConditionRunning
	starting := condition.New(kind, false, v1alpha1.ReasonStarting, "")
	started := condition.New(kind, true, v1alpha1.ReasonStarted, "")
	resets := condition.New(kind, true, v1alpha1.ReasonGuestResetLoop, "the guest resets again and again")
	before := started // as the agent before this one wrote it
	before.Message = ""
	exit := func(reason v1alpha1.Reason, code int32) *v1alpha1.VirtualMachineStatus {
		return &v1alpha1.VirtualMachineStatus{LastExit: &v1alpha1.LastExit{Reason: reason, ExitCode: code}}
	}
	late := condition.New(kind, false, v1alpha1.ReasonStarting, "connecting to the console: no such file")
	noImage := condition.New(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonImageNotFound, "no such image")
	unknown := condition.Unknown(kind, v1alpha1.ReasonLibvirtUnreachable, "libvirtd does not answer")
	for name, tt := range map[string]struct {
		had, has *v1alpha1.VirtualMachineStatus
		event    string // how it begins
	}{
		"a first word":               {&v1alpha1.VirtualMachineStatus{}, running(started), "Normal Started Guest runs"},
		"a start":                    {running(starting), running(started), "Normal Started Guest runs"},
		"what stands there":          {running(started), running(started), ""},
		"the same in other words":    {running(before), running(started), ""},
		"nothing known":              {running(started), running(unknown), "Warning LibvirtUnreachable libvirtd does not"},
		"a start that takes long":    {running(starting), running(late), ""},
		"an image that is not there": {running(starting), running(noImage), "Warning ImageNotFound no such image"},
		"a power-off":                {running(started), exit(v1alpha1.ReasonPoweredOff, 0), "Normal PoweredOff The guest powered itself off (exit code 0)"},
		"a panic":                    {running(started), exit(v1alpha1.ReasonGuestPanicked, 134), "Warning GuestPanicked The guest's kernel reported a panic (exit code 134)"},
		"it resets again and again":  {running(started), running(resets), "Warning GuestResetLoop the guest resets"},
		"it does not any more":       {running(resets), running(started), ""},
		"a guest that was there on":  {running(unknown), running(started), ""},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(2)
			r := &Reconciler{Options: Options{Events: recorder}}
			r.announce(t.Context(), &v1alpha1.VirtualMachine{}, tt.had, tt.has)
			close(recorder.Events)
			var told []string
			for e := range recorder.Events {
				told = append(told, e)
			}
			if all := strings.Join(told, "\n"); (all == "") != (tt.event == "") || !strings.HasPrefix(all, tt.event) || len(told) > 1 {
				t.Errorf("told %q, want %q", all, tt.event)
			}
		})
	}
}

// TestAnnounceData: that a claim had data in place of its image is told once, when the guest first has it.
func TestAnnounceData(t *testing.T) {
	disk := func(used, image string, isSeeded bool) *v1alpha1.VirtualMachineStatus {
		return &v1alpha1.VirtualMachineStatus{Disks: []v1alpha1.DiskStatus{{Name: "data", UsedClaimUID: types.UID(used), Image: image, Seeded: isSeeded}}}
	}
	none, found, seeded := &v1alpha1.VirtualMachineStatus{}, disk("1", "", false), disk("1", "a", true)
	for name, tt := range map[string]struct {
		image    string // that the spec asks for
		had, has *v1alpha1.VirtualMachineStatus
		told     bool
	}{
		"data in place of an image":   {"a", none, found, true},
		"the same, told already":      {"a", found, found, false},
		"the data of another claim":   {"a", found, disk("2", "", false), true},
		"a claim that was seeded":     {"a", none, seeded, false},
		"a claim that has no image":   {"", none, found, false},
		"a disk that is still a wish": {"a", none, disk("", "", false), false},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(2)
			r := &Reconciler{Options: Options{Events: recorder}}
			vm := &v1alpha1.VirtualMachine{Spec: v1alpha1.VirtualMachineSpec{Disks: []v1alpha1.Disk{{Name: "data", Image: tt.image}}}}
			r.announce(t.Context(), vm, tt.had, tt.has)
			close(recorder.Events)
			told := <-recorder.Events
			if strings.HasPrefix(told, "Normal ClaimNotBlank The claim of disk data had data already") != tt.told || (told == "") == tt.told {
				t.Errorf("told %q", told)
			}
		})
	}
}
