package image

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
)

// A node whose pull failed is tried again after so long; what only a user can correct, later, or once the spec has changed.
const (
	rest     = time.Minute
	userRest = 10 * time.Minute
)

// seen is what the cache has of an image.
type seen struct {
	image   *v1alpha1.VirtualMachineImage
	nodes   []corev1.Node
	hosts   []v1alpha1.VirtualMachineHost
	porters []corev1.Pod
	now     time.Time
}

// errand is a porter to be made, for a node, with what the image is known to be.
type errand struct{ node, digest string }

// next is what follows.
type next struct {
	create   []errand
	remove   []*corev1.Pod
	status   v1alpha1.VirtualMachineImageStatus // without conditions: see tell
	resolved bool
	failures []failure
	wake     time.Duration
}

// digest is one that the store takes.
var digest = regexp.MustCompile(`^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$`)

// failure is how a porter ended that did not succeed.
type failure struct {
	node, message string
	reason        v1alpha1.Reason
}

// decide compares what the image is to be with what is seen. It is pure.
func decide(s seen) (n next) {
	spec := &s.image.Spec
	n.status = *s.image.Status.DeepCopy()
	targets := s.targets()
	waits, resting := map[string]bool{}, map[string]bool{} // nodes with a porter; those whose porter failed
	for i := range s.porters {
		p := &s.porters[i]
		at := slices.IndexFunc(targets, func(node string) bool { return berth.PorterName(s.image.Name, node) == p.Name })
		if at < 0 || !s.wants(p) {
			n.remove = append(n.remove, p)
			continue
		}
		node := targets[at]
		reason, message, ended := end(p, v1alpha1.ReasonPullingImage)
		failed := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded && !digest.MatchString(message) // which has another's
		if p.Status.Phase == corev1.PodSucceeded && !failed && !s.isResolved(&n.status) {
			n.status.Digest, n.status.Image, n.status.RefreshedAt = message, spec.Image, spec.RefreshedAt
		}
		switch {
		case s.isResolved(&n.status) && s.has(node, n.status.Digest):
			n.remove = append(n.remove, p)
		case failed:
			pause := rest
			if reason.IsUsers() {
				pause = userRest
			}
			if left := pause - s.now.Sub(ended); left > 0 {
				resting[node] = true
				n.failures = append(n.failures, failure{node, message, reason})
				n.wake = min(cmp.Or(n.wake, left), left)
			} else {
				n.remove = append(n.remove, p) // the next one is made once it is gone
				waits[node] = true
			}
		case p.Status.Phase == corev1.PodSucceeded:
			waits[node] = true // until its host tells of the image
		default:
			waits[node] = true
			if c := berth.Condition(p, corev1.PodScheduled); c.Status == corev1.ConditionFalse && c.Message != "" {
				n.failures = append(n.failures, failure{node, c.Message, v1alpha1.ReasonUnschedulable})
			}
		}
	}
	n.resolved = s.isResolved(&n.status)
	ready := int32(0)
	for _, node := range targets {
		switch {
		case n.resolved && s.has(node, n.status.Digest):
			ready++
		case waits[node] || resting[node]:
		case n.resolved:
			n.create = append(n.create, errand{node, n.status.Digest})
		case len(waits) == 0 && !slices.ContainsFunc(n.failures, func(f failure) bool { return f.reason.IsUsers() }):
			n.create = append(n.create, errand{node, ""}) // one asks what the name means
			waits[node] = true
		}
	}
	n.status.Nodes = &v1alpha1.ImageNodes{Ready: ready, Total: int32(len(targets))} //nolint:gosec // of nodes
	n.status.Size = cmp.Or(s.find("", n.status.Digest), &v1alpha1.HostImage{}).Size
	return n
}

// tell completes the status with what is to be told, once it is known what could not be done.
func (n *next) tell(s seen) {
	n.status.Conditions = condition.MergeTransitionTimes(conditions(n.resolved, n.status.Nodes, n.failures), s.image.Status.Conditions, s.image.Generation, s.now)
}

// targets are the names of the nodes that are to have the image: they can run guests, are selected, and take new pods.
func (s *seen) targets() (names []string) {
	selector := labels.SelectorFromSet(s.image.Spec.NodeSelector)
	for i := range s.nodes {
		node := &s.nodes[i]
		shut := node.Spec.Unschedulable || slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
		if node.Labels[berth.LabelHost] == "true" && selector.Matches(labels.Set(node.Labels)) && !shut {
			names = append(names, node.Name)
		}
	}
	slices.Sort(names)
	return names
}

// wants tells whether a porter is for what the spec says now, and not on its way out.
func (s *seen) wants(p *corev1.Pod) bool {
	e, err := berth.ParseErrand(p)
	spec, status := &s.image.Spec, &s.image.Status
	return err == nil && e.Image == spec.Image && e.RefreshedAt == spec.RefreshedAt && (!s.isResolved(status) || e.Digest == "" || e.Digest == status.Digest)
}

// isResolved: the digest is what the spec's name meant when it was to be resolved.
func (s *seen) isResolved(status *v1alpha1.VirtualMachineImageStatus) bool {
	return status.Digest != "" && status.Image == s.image.Spec.Image && status.RefreshedAt == s.image.Spec.RefreshedAt
}

func (s *seen) has(node, digest string) bool { return digest != "" && s.find(node, digest) != nil }

// find returns what a node, or any if that is "", tells of an image.
func (s *seen) find(node, digest string) *v1alpha1.HostImage {
	for h := range s.hosts {
		host := &s.hosts[h]
		i := slices.IndexFunc(host.Status.Images, func(i v1alpha1.HostImage) bool { return i.Digest == digest })
		if i >= 0 && (node == "" || host.Name == node) {
			return &host.Status.Images[i]
		}
	}
	return nil
}

// end is how a porter ended, as its container's termination message tells: a reason with a message, or the digest. One that was
// evicted, or killed, has the reason other.
func end(p *corev1.Pod, other v1alpha1.Reason) (reason v1alpha1.Reason, message string, at time.Time) {
	at = p.CreationTimestamp.Time
	message = p.Status.Message
	if t := berth.ContainerStatus(p).State.Terminated; t != nil {
		at, message = t.FinishedAt.Time, t.Message
	}
	word, rest, _ := strings.Cut(message, ": ") // as shimproto.TerminationMessage has it
	if reason = v1alpha1.Reason(word); slices.Contains(v1alpha1.Reasons(), reason) {
		return reason, rest, at
	}
	return other, message, at
}

// conditions are Ready and Resolved.
func conditions(resolved bool, nodes *v1alpha1.ImageNodes, failures []failure) []metav1.Condition {
	reason, message := v1alpha1.ReasonPullingImage, fmt.Sprintf("%d of %d nodes have the image.", nodes.Ready, nodes.Total)
	if len(failures) > 0 {
		f := failures[0]
		reason, message = f.reason, fmt.Sprintf("%s Node %s: %s", message, f.node, f.message)
	}
	switch {
	case nodes.Total == 0:
		reason, message = v1alpha1.ReasonNoHost, "No node that can run guests is selected, and takes new pods."
	case resolved && nodes.Ready == nodes.Total:
		reason = v1alpha1.ReasonImageReady
	}
	isResolved := condition.New(v1alpha1.ConditionResolved, resolved, reason, message)
	if resolved {
		isResolved = condition.New(v1alpha1.ConditionResolved, true, v1alpha1.ReasonImageResolved, "")
	}
	return []metav1.Condition{condition.New(v1alpha1.ConditionReady, reason == v1alpha1.ReasonImageReady, reason, message), isResolved}
}
