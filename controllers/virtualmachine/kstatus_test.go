package virtualmachine

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	lua "github.com/yuin/gopher-lua"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/env"
)

// TestKstatus: what Flux, Helm and others make of a VirtualMachine by kstatus. The status is the operator's own, over
// what the agent wrote.
func TestKstatus(t *testing.T) {
	const running, disks = v1alpha1.ConditionRunning, v1alpha1.ConditionDisksReady
	runs := says(running, true, v1alpha1.ReasonStarted)
	starts := says(running, false, v1alpha1.ReasonStarting)
	poweredOff, panicked := says(running, false, v1alpha1.ReasonPoweredOff), says(running, false, v1alpha1.ReasonGuestPanicked)
	isPaused := says(running, false, v1alpha1.ReasonPaused)
	unreachable := func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = []metav1.Condition{condition.Unknown(running, v1alpha1.ReasonLibvirtUnreachable, "")}
	}
	paused := func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StatePaused }
	passing := func(pod *corev1.Pod) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	backsOff := func(pod *corev1.Pod) {
		waits := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest", State: waits}}
	}
	notReady := func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = append(vm.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, LastTransitionTime: metav1.Time{Time: now},
		})
	}
	lost := func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }
	for name, tc := range map[string]struct {
		seen     snapshot
		observed int64 // the generation that the status answers to, if the operator has not come by since
		is       string
	}{
		"just created":                  {snapshot{vm: vm(neverScheduled)}, -1, " InProgress"},
		"changed just now":              {snapshot{vm: vm(runs), berth: pod(passing), node: node()}, 1, " InProgress"},
		"without a berth yet":           {snapshot{vm: vm(neverScheduled)}, 0, "Pending InProgress"},
		"without a node yet":            {snapshot{vm: vm(neverScheduled), berth: pod(withoutNode)}, 0, "Pending InProgress"},
		"starting":                      {snapshot{vm: vm(starts), berth: pod(), node: node()}, 0, "Starting InProgress"},
		"its image is pulled":           {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonPullingImage)), berth: pod(), node: node()}, 0, "Starting InProgress"},
		"its image does not exist":      {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonImageNotFound)), berth: pod(), node: node()}, 0, "Waiting InProgress"},
		"nor a minute later":            {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonImageNotFound), notReady), berth: pod(), node: node(), now: now.Add(time.Minute)}, 0, "Waiting Failed"},
		"its registry does not answer":  {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonRegistryUnreachable), notReady), berth: pod(), node: node(), now: now.Add(time.Hour)}, 0, "Waiting InProgress"},
		"nor can its disk be read":      {snapshot{vm: vm(starts, says(disks, false, v1alpha1.ReasonInternalError)), berth: pod(), node: node()}, 0, "Waiting InProgress"},
		"its berth was refused":         {snapshot{vm: vm(released, notReady), node: node(), now: now.Add(time.Hour)}, 0, "Pending InProgress"},
		"its shim cannot be pulled":     {snapshot{vm: vm(starts), berth: pod(), notStarted: "ErrImagePull: words", node: node()}, 0, "Waiting InProgress"},
		"running":                       {snapshot{vm: vm(runs), berth: pod(passing), node: node()}, 0, "Running Current"},
		"running, with pending changes": {snapshot{vm: vm(runs), berth: pod(passing), node: node(), outdated: cores}, 0, "Running Current"},
		"its probes fail":               {snapshot{vm: vm(runs), berth: pod(), node: node()}, 0, "Running InProgress"},
		"libvirtd does not answer":      {snapshot{vm: vm(unreachable), berth: pod(passing), node: node()}, 0, "Unknown InProgress"},
		"its node is lost":              {snapshot{vm: vm(runs), berth: pod(passing), node: node(lost)}, 0, "Unknown InProgress"},
		"paused":                        {snapshot{vm: vm(paused, isPaused), berth: pod(), node: node()}, 0, "Paused Current"},
		"paused, and its node is lost":  {snapshot{vm: vm(paused, isPaused), berth: pod(), node: node(lost)}, 0, "Unknown InProgress"},
		"paused, and replaced":          {snapshot{vm: vm(paused, isPaused), berth: pod(ends), node: node()}, 0, "Stopping InProgress"},
		"to be resumed":                 {snapshot{vm: vm(isPaused), berth: pod(), node: node()}, 0, "Paused InProgress"},
		"stopping":                      {snapshot{vm: vm(stopped, runs), berth: pod(passing, ends), node: node()}, 0, "Stopping InProgress"},
		"stopped":                       {snapshot{vm: vm(stopped, released, poweredOff), node: node()}, 0, "Stopped Current"},
		"succeeded":                     {snapshot{vm: vm(onFailure, poweredOff), berth: pod(succeeded), node: node()}, 0, "Succeeded Current"},
		"succeeded, by kubelet alone":   {snapshot{vm: vm(never, unreachable), berth: pod(succeeded), node: node()}, 0, "Succeeded Current"},
		"powered off, to be restarted":  {snapshot{vm: vm(poweredOff), berth: pod(succeeded), node: node()}, 0, "Succeeded InProgress"},
		"failed":                        {snapshot{vm: vm(never, panicked), berth: pod(failed), node: node()}, 0, "Failed Failed"},
		"failed, as kubelet says first": {snapshot{vm: vm(never, runs), berth: pod(failed), node: node()}, 0, "Failed InProgress"},
		"failed, and its node is lost":  {snapshot{vm: vm(never, panicked), berth: pod(failed), node: node(lost)}, 0, "Unknown InProgress"},
		"evicted, to be restarted":      {snapshot{vm: vm(onFailure, panicked), berth: pod(failed), node: node()}, 0, "Failed InProgress"},
		"panicked again and again":      {snapshot{vm: vm(panicked), berth: pod(backsOff), node: node()}, 0, "BackOff InProgress"},
		"ended, and its pod is gone":    {snapshot{vm: vm(never, released, poweredOff, ended(v1alpha1.PhaseSucceeded)), node: node()}, 0, "Succeeded Current"},
		"failed, and its pod is gone":   {snapshot{vm: vm(never, released, panicked, ended(v1alpha1.PhaseFailed)), node: node()}, 0, "Failed Failed"},
		"ended, and its time runs":      {snapshot{vm: vm(never, released, poweredOff, ttl(60), endedAt(now)), node: node(), now: now}, 0, "Succeeded Current"},
		"ended, and its time is over":   {snapshot{vm: vm(never, released, poweredOff, ttl(0), endedAt(now), deleted), node: node(), now: now}, 0, "Stopping Terminating"},
		"deleted":                       {snapshot{vm: vm(deleted, runs), berth: pod(ends), node: node()}, 0, "Stopping Terminating"},
	} {
		t.Run(name, func(t *testing.T) {
			vm := tc.seen.vm
			vm.Generation, vm.Status.ObservedGeneration = 2, tc.observed
			if tc.observed == 0 {
				s := statusOf(tc.seen, nil)
				for _, c := range s.Conditions {
					repeats := c.Type == v1alpha1.ConditionReady || c.Type == v1alpha1.ConditionStalled
					if !repeats && !v1alpha1.Reason(c.Reason).StandsIn(c.Type) {
						t.Errorf("the table of reasons does not have %s in %s", c.Reason, c.Type)
					}
				}
				vm.Status.Phase, vm.Status.ObservedGeneration = s.Phase, s.ObservedGeneration
				own := func(c metav1.Condition) bool { return slices.Contains(ownConditions, c.Type) }
				vm.Status.Conditions = slices.Concat(slices.DeleteFunc(vm.Status.Conditions, own), s.Conditions)
			}
			object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(vm)
			if err != nil {
				t.Fatal(err)
			}
			result, err := status.Compute(&unstructured.Unstructured{Object: object})
			if err != nil {
				t.Fatal(err)
			}
			if is := string(vm.Status.Phase) + " " + result.Status.String(); is != tc.is {
				t.Errorf("is %q, want %q: %s, %+v", is, tc.is, result.Message, vm.Status.Conditions)
			}
			if health := argoHealth(t, object); health != ofArgo[result.Status] {
				t.Errorf("for Argo CD it is %q, want %q", health, ofArgo[result.Status])
			}
		})
	}
}

// ofArgo is what Argo CD calls the states of kstatus.
var ofArgo = map[status.Status]string{
	status.CurrentStatus: "Healthy", status.InProgressStatus: "Progressing", status.TerminatingStatus: "Progressing", status.FailedStatus: "Degraded",
}

// argoHealth runs the health check that docs have for Argo CD, as Argo CD does.
func argoHealth(t *testing.T, object map[string]any) string {
	t.Helper()
	state := lua.NewState()
	defer state.Close()
	state.SetGlobal("obj", toLua(state, object))
	if err := state.DoFile(filepath.Join(env.Root(), "docs", "argocd-health.lua")); err != nil {
		t.Fatal(err)
	}
	health, isTable := state.Get(-1).(*lua.LTable)
	if !isTable || health.RawGetString("message").String() == "nil" {
		t.Fatalf("it says %v", state.Get(-1))
	}
	return health.RawGetString("status").String()
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range value {
			table.RawSetString(key, toLua(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range value {
			table.Append(toLua(state, item))
		}
		return table
	case string:
		return lua.LString(value)
	case int64:
		return lua.LNumber(value)
	case bool:
		return lua.LBool(value)
	default:
		return lua.LNil
	}
}
