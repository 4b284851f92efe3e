package image

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
)

var (
	now  = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	sum  = "sha256:" + strings.Repeat("a", 64)
	sum2 = "sha256:" + strings.Repeat("b", 64)
)

func node(name string, is ...func(*corev1.Node)) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{berth.LabelHost: "true", "name": name}}}
	for _, f := range is {
		f(&n)
	}
	return n
}

func host(name string, digests ...string) v1alpha1.VirtualMachineHost {
	h := v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, d := range digests {
		h.Status.Images = append(h.Status.Images, v1alpha1.HostImage{Digest: d})
	}
	return h
}

// world is an image that is to be on three nodes, a, b and c.
func world(status v1alpha1.VirtualMachineImageStatus, porters ...corev1.Pod) seen {
	image := &v1alpha1.VirtualMachineImage{ObjectMeta: metav1.ObjectMeta{Name: "debian", Namespace: "web"}, Status: status}
	image.Spec.Image = "quay.io/a/debian:12"
	return seen{
		image: image, now: now, porters: porters,
		nodes: []corev1.Node{
			node("c"), node("a"), node("b"), node("no-host", func(n *corev1.Node) { n.Labels = nil }),
			node("cordoned", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
			node("tainted", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}} }),
		},
		hosts: []v1alpha1.VirtualMachineHost{host("a"), host("b"), host("c")},
	}
}

func resolved(to string) v1alpha1.VirtualMachineImageStatus {
	return v1alpha1.VirtualMachineImageStatus{Digest: to, Image: "quay.io/a/debian:12"}
}

// porter of a node has ended with a message since a while, or runs if that is "".
func porter(t *testing.T, on, digest string, phase corev1.PodPhase, message string, since time.Duration) corev1.Pod {
	t.Helper()
	s := world(v1alpha1.VirtualMachineImageStatus{})
	p, err := berth.Porter(s.image, on, digest, berth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p.Status.Phase = phase
	if message != "" {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: berth.Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Message: message, FinishedAt: metav1.NewTime(now.Add(-since)),
		}}}}
	}
	return *p
}

func TestDecide(t *testing.T) {
	const pending, runs, succeeded, failed = corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed
	unreachable := "RegistryUnreachable: it does not answer"
	missing := "ImageNotFound: there is none"
	type want struct {
		create []errand
		remove []string // nodes
		digest string
		ready  int32
		reason v1alpha1.Reason // of Ready
		wake   time.Duration
	}
	pulling := v1alpha1.ReasonPullingImage
	for name, tt := range map[string]struct {
		status  v1alpha1.VirtualMachineImageStatus
		porters []corev1.Pod
		hosts   []v1alpha1.VirtualMachineHost
		want    want
	}{
		"a new one is resolved by one node":                 {want: want{create: []errand{{"a", ""}}, reason: pulling}},
		"which is waited for":                               {porters: []corev1.Pod{porter(t, "a", "", runs, "", 0)}, want: want{reason: pulling}},
		"then the others have it pulled":                    {porters: []corev1.Pod{porter(t, "a", "", succeeded, sum, 0)}, want: want{create: []errand{{"b", sum}, {"c", sum}}, digest: sum, reason: pulling}},
		"and the first goes once its host has it":           {status: resolved(sum), hosts: []v1alpha1.VirtualMachineHost{host("a", sum)}, porters: []corev1.Pod{porter(t, "a", "", succeeded, sum, 0), porter(t, "b", sum, runs, "", 0), porter(t, "c", sum, pending, "", 0)}, want: want{remove: []string{"a"}, digest: sum, ready: 1, reason: pulling}},
		"all have it":                                       {status: resolved(sum), hosts: []v1alpha1.VirtualMachineHost{host("a", sum), host("b", sum2, sum), host("c", sum)}, want: want{digest: sum, ready: 3, reason: v1alpha1.ReasonImageReady}},
		"a node that fails leaves the question to another":  {porters: []corev1.Pod{porter(t, "a", "", failed, unreachable, time.Second)}, want: want{create: []errand{{"b", ""}}, reason: v1alpha1.ReasonRegistryUnreachable, wake: rest - time.Second}},
		"what only a user can correct is asked of no other": {porters: []corev1.Pod{porter(t, "a", "", failed, missing, time.Second)}, want: want{reason: v1alpha1.ReasonImageNotFound, wake: userRest - time.Second}},
		"it is tried again":                                 {porters: []corev1.Pod{porter(t, "a", "", failed, unreachable, rest)}, want: want{remove: []string{"a"}, reason: pulling}},
		"one node fails, the others have it":                {status: resolved(sum), hosts: []v1alpha1.VirtualMachineHost{host("a", sum), host("b", sum)}, porters: []corev1.Pod{porter(t, "c", sum, failed, unreachable, 0)}, want: want{digest: sum, ready: 2, reason: v1alpha1.ReasonRegistryUnreachable, wake: rest}},
		"of another digest is of no use":                    {status: resolved(sum), porters: []corev1.Pod{porter(t, "a", sum2, runs, "", 0)}, want: want{create: []errand{{"a", sum}, {"b", sum}, {"c", sum}}, remove: []string{"a"}, digest: sum, reason: pulling}},
		"what says no digest has failed":                    {porters: []corev1.Pod{porter(t, "a", "", succeeded, "yes", 0)}, want: want{create: []errand{{"b", ""}}, reason: pulling, wake: rest}},
	} {
		t.Run(name, func(t *testing.T) {
			s := world(tt.status, tt.porters...)
			for _, h := range tt.hosts {
				for i := range s.hosts {
					if s.hosts[i].Name == h.Name {
						s.hosts[i] = h
					}
				}
			}
			n := decide(s)
			n.tell(s)
			got := want{create: n.create, digest: n.status.Digest, ready: n.status.Nodes.Ready, reason: condition.Reason(n.status.Conditions, v1alpha1.ConditionReady), wake: n.wake}
			for _, p := range n.remove {
				for _, on := range []string{"a", "b", "c"} {
					if p.Name == berth.PorterName("debian", on) {
						got.remove = append(got.remove, on)
					}
				}
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(want{}, errand{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if n.status.Nodes.Total != 3 {
				t.Errorf("of %d nodes", n.status.Nodes.Total)
			}
		})
	}
}

func TestARefreshResolvesOnce(t *testing.T) {
	s := world(resolved(sum))
	s.image.Spec.RefreshedAt = "today"
	n := decide(s)
	if diff := cmp.Diff([]errand{{"a", ""}}, n.create, cmp.AllowUnexported(errand{})); diff != "" || n.status.Digest != sum {
		t.Errorf("digest %s, creates -want +got:\n%s", n.status.Digest, diff)
	}
}

func TestNoNodeIsSelected(t *testing.T) {
	s := world(v1alpha1.VirtualMachineImageStatus{})
	s.image.Spec.NodeSelector = map[string]string{"name": "no-host"}
	n := decide(s)
	n.tell(s)
	if got := condition.Reason(n.status.Conditions, v1alpha1.ConditionReady); len(n.create) > 0 || got != v1alpha1.ReasonNoHost {
		t.Errorf("creates %v, says %s", n.create, got)
	}
}
