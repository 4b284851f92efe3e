package virtualmachine

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

func TestWhyTheContainerDoesNotRun(t *testing.T) {
	waits := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	ended := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, Message: message, ExitCode: 128}}
	}
	runs := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	for name, c := range map[string]struct {
		now, last corev1.ContainerState
		want      string
	}{
		"it runs":                            {now: runs, want: ""},
		"it runs after a failure":            {now: runs, last: ended("StartError", "no such user"), want: ""},
		"it is being created":                {now: waits("ContainerCreating", ""), want: ""},
		"kubelet has said nothing":           {now: corev1.ContainerState{}, want: ""},
		"its guest failed":                   {now: waits("CrashLoopBackOff", "back-off 10s"), last: ended("Error", "QEMUFailed"), want: ""},
		"its guest has just failed":          {now: ended("Error", "QEMUFailed"), want: ""},
		"its image cannot be pulled":         {now: waits("ErrImagePull", "not found"), want: "ErrImagePull: not found"},
		"nor for some time":                  {now: waits("ImagePullBackOff", "Back-off pulling image"), want: "ImagePullBackOff: Back-off pulling image"},
		"its image has no name":              {now: waits("InvalidImageName", "couldn't parse"), want: "InvalidImageName: couldn't parse"},
		"its image may not be pulled":        {now: waits("ErrImageNeverPull", "not present"), want: "ErrImageNeverPull: not present"},
		"a ConfigMap is missing":             {now: waits("CreateContainerConfigError", "not found"), want: "CreateContainerConfigError: not found"},
		"the runtime does not make it":       {now: waits("CreateContainerError", "name is taken"), want: "CreateContainerError: name is taken"},
		"the runtime does not run it":        {now: waits("RunContainerError", "no such user"), want: "RunContainerError: no such user"},
		"the runtime could not start it":     {now: ended("StartError", "no such user"), want: "StartError: no such user"},
		"nor at its restart":                 {now: waits("CrashLoopBackOff", "back-off 10s"), last: ended("StartError", "no such user"), want: "StartError: no such user"},
		"what comes with the next kubelet":   {now: waits("Unheard", "of"), want: "Unheard: of"},
		"a pod whose kubelet is still to it": {now: waits("PodInitializing", ""), want: ""},
	} {
		berth := pod(func(p *corev1.Pod) {
			p.Status.StartTime = &metav1.Time{Time: now}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest", State: c.now, LastTerminationState: c.last}}
		})
		if got := notStarted(berth); got != c.want {
			t.Errorf("%s: it says %q, want %q", name, got, c.want)
		}
		if c.want == "" {
			continue
		}
		for agent, vm := range map[string]*v1alpha1.VirtualMachine{
			"an agent that has said nothing": vm(),
			"an agent that waits for it":     vm(says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonStarting), says(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonPullingImage)),
		} {
			seen := snapshot{vm: vm, berth: berth, node: node(), notStarted: c.want}
			is := ready(seen, condition.New(v1alpha1.ConditionScheduled, true, v1alpha1.ReasonScheduled, ""))
			if is == nil || is.Reason != string(v1alpha1.ReasonBerthNotStarted) || is.Message != "kubelet does not run the berth's container: "+c.want || !isWarning(*is) {
				t.Errorf("%s, %s: Ready is %+v", name, agent, is)
			}
		}
	}
}

func TestABerthThatIsSlowToStartIsLookedAtAgain(t *testing.T) {
	at := func(age time.Duration, changes ...func(*corev1.Pod)) *snapshot {
		berth := pod(append([]func(*corev1.Pod){func(p *corev1.Pod) { p.Status.StartTime = &metav1.Time{Time: now.Add(-age)} }}, changes...)...)
		return &snapshot{vm: vm(), berth: berth, now: now}
	}
	running := func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	}
	for name, c := range map[string]struct {
		seen *snapshot
		want time.Duration
	}{
		"there is none":                {&snapshot{vm: vm()}, 0},
		"kubelet has not seen it":      {at(0, func(p *corev1.Pod) { p.Status.StartTime = nil }), 0},
		"kubelet has just taken it on": {at(time.Second), creatingPatience - time.Second},
		"the node's clock is ahead":    {at(-time.Hour), creatingPatience},
		"it takes long":                {at(time.Minute), creatingLook},
		"it runs":                      {at(time.Minute, running), 0},
		"it is being deleted":          {at(time.Minute, ends), 0},
		"it has ended":                 {at(time.Minute, failed), 0},
	} {
		if got := c.seen.createdIn(); got != c.want {
			t.Errorf("%s: looked at in %s, want %s", name, got, c.want)
		}
	}
}
