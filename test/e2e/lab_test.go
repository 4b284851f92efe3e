package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// waitTimeout is how long anything may take before a test gives up; guests are emulated on two cores, where a Debian among
// seven others was seen to boot for more than ten minutes.
const waitTimeout = 20 * time.Minute

// lab is a test's own namespace in the lab.
type lab struct {
	*testing.T
	client.WithWatch
	ns string
}

var connect = sync.OnceValues(func() (client.WithWatch, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 200
	return client.NewWithWatch(config, client.Options{Scheme: kube.Scheme()})
})

// startAlone gives a test its namespace, and nothing runs beside it.
func startAlone(t *testing.T) *lab {
	t.Helper()
	env.Need(t, "LAB_REGISTRY", "a lab; make lab-up, then eval \"$(make -s lab-env)\"")
	c, err := connect()
	if err != nil {
		t.Fatalf("reaching the lab: %v", err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "restricted",
	}}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatalf("making namespace: %v", err)
	}
	l := &lab{T: t, WithWatch: c, ns: ns.Name}
	began := time.Now()
	t.Cleanup(func() {
		l.end(ns)
		t.Logf("it took %.1f s, once it had its turn", time.Since(began).Seconds())
	})
	return l
}

// end deletes the namespace with all that is in it, and fails the test if that gets stuck.
func (l *lab) end(ns *corev1.Namespace) {
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	if l.Failed() {
		l.Log(l.describe(ctx))
		l.Log(l.show(ctx, "logs", "--selector="+berth.LabelVM, "--tail=20", "--prefix")) // by itself, as the last is seen for sure
	}
	// Nobody waits for guests to shut down. VMs and pods go before the namespace: of one with pods, Kubernetes looks again only
	// after half of their grace period. TestNamespaceDeleted leaves it all to the namespace.
	err := l.DeleteAllOf(ctx, &v1alpha1.VirtualMachine{}, client.InNamespace(ns.Name))
	for vms := (&v1alpha1.VirtualMachineList{}); err == nil; time.Sleep(100 * time.Millisecond) {
		err = l.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(ns.Name), client.GracePeriodSeconds(1))
		if err = errors.Join(err, l.List(ctx, vms, client.InNamespace(ns.Name))); len(vms.Items) == 0 {
			break
		}
	}
	if err := errors.Join(err, client.IgnoreNotFound(l.Delete(ctx, ns))); err != nil {
		l.Errorf("deleting namespace: %v", err)
		return
	}
	await(ctx, l, &corev1.NamespaceList{}, "", ns.Name, "the namespace to go", func(n *corev1.Namespace) bool { return n == nil })
}

// describe shows what is in the namespace, for a test that failed.
func (l *lab) describe(ctx context.Context) string {
	out := ""
	for _, args := range [][]string{
		{"get", "vm,pods", "-o", "wide"},
		{"get", "vm", "-o", "yaml"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out += l.show(ctx, args...)
	}
	return out
}

func (l *lab) show(ctx context.Context, args ...string) string {
	raw, err := exec.CommandContext(ctx, "kubectl", append([]string{"-n", l.ns}, args...)...).CombinedOutput()
	return fmt.Sprintf("$ kubectl %s (%v)\n%s\n", strings.Join(args, " "), err, raw)
}

// kubectl runs kubectl in the test's namespace and returns what it prints.
func (l *lab) kubectl(stdin string, args ...string) string {
	l.Helper()
	out, err := l.tryKubectl(stdin, args...)
	if err != nil {
		l.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (l *lab) tryKubectl(stdin string, args ...string) (string, error) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), waitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"-n", l.ns}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	defer env.Slow(l, time.Now(), "kubectl "+strings.Join(args, " "))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), nil
}

// apply applies manifests as a user would; $TINY, $KERNEL, $HOSTILE, $CLOUD, $TOOLS, $BUSYBOX and $REGISTRY stand for the lab's.
func (l *lab) apply(manifest string) {
	l.Helper()
	l.kubectl(expand(manifest), "apply", "-f", "-")
}

func expand(manifest string) string {
	return strings.NewReplacer(
		"$TINY", os.Getenv("LAB_IMAGE_TINY"), "$KERNEL", os.Getenv("LAB_IMAGE_KERNEL"),
		"$HOSTILE", os.Getenv("LAB_IMAGE_HOSTILE"), "$CLOUD", os.Getenv("LAB_IMAGE_CLOUD"), "$TOOLS", os.Getenv("LAB_IMAGE_TOOLS"), "$BUSYBOX", os.Getenv("LAB_IMAGE_BUSYBOX"),
		"$REGISTRY", os.Getenv("LAB_REGISTRY"),
	).Replace(manifest)
}

// patch changes a VirtualMachine's spec.
func (l *lab) patch(vm, spec string) {
	l.Helper()
	l.kubectl("", "patch", "vm", vm, "--type=merge", "-p", fmt.Sprintf(`{"spec":%s}`, spec))
}

// vm waits until a VirtualMachine is as the test wants it. It is nil there when it is gone.
func (l *lab) vm(name, what string, is func(*v1alpha1.VirtualMachine) bool) *v1alpha1.VirtualMachine {
	l.Helper()
	return await(l.Context(), l, &v1alpha1.VirtualMachineList{}, l.ns, name, "VirtualMachine "+name+" "+what, is)
}

// pod waits until a pod is as the test wants it.
func (l *lab) pod(name, what string, is func(*corev1.Pod) bool) *corev1.Pod {
	l.Helper()
	return await(l.Context(), l, &corev1.PodList{}, l.ns, name, "pod "+name+" "+what, is)
}

// await watches one object until it is as wanted.
func await[T any, O interface {
	*T
	client.Object
}](ctx context.Context, l *lab, list client.ObjectList, ns, name, what string, is func(O) bool) O {
	l.Helper()
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	defer env.Slow(l, time.Now(), what)
	var was history
	for ctx.Err() == nil {
		one := O(new(T))
		err := l.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, one)
		if client.IgnoreNotFound(err) != nil {
			was.add(err.Error())
			continue
		}
		if err != nil {
			one = nil
		}
		if is(one) {
			return one
		}
		was.add(summary(one))
		resource := ""
		if one != nil {
			resource = one.GetResourceVersion()
		}
		w, err := l.Watch(ctx, list, &client.ListOptions{
			Namespace: ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", name),
			Raw: &metav1.ListOptions{ResourceVersion: resource},
		})
		if err != nil {
			was.add(err.Error())
			continue
		}
		for event := range w.ResultChan() {
			seen, ok := event.Object.(O)
			if !ok {
				break // expired: look again
			}
			if event.Type == watch.Deleted {
				seen = nil
			}
			was.add(summary(seen))
			if is(seen) {
				w.Stop()
				return seen
			}
			if seen == nil {
				break
			}
		}
		w.Stop()
	}
	l.Fatalf("waited in vain for %s; it was\n%s", what, was)
	return nil
}

// history is how something was that a test waits for, and since when: how it came to what it is.
type history []string

func (h *history) add(summary string) {
	if n := len(*h); n == 0 || !strings.HasSuffix((*h)[n-1], " "+summary) {
		*h = append(*h, time.Now().UTC().Format("15:04:05 ")+summary)
	}
}

// String leaves out what was before the last twenty changes.
func (h history) String() string { return strings.Join(h[max(0, len(h)-20):], "\n") }

func summary[O client.Object](o O) string {
	switch o := any(o).(type) {
	case *v1alpha1.VirtualMachine:
		if o == nil {
			return "gone"
		}
		text := string(o.Status.Phase)
		for _, c := range o.Status.Conditions {
			text += fmt.Sprintf(" %s=%s(%s %s)", c.Type, c.Status, c.Reason, c.Message)
		}
		if e := o.Status.Ended; e != nil {
			text += fmt.Sprintf(" ended=%+v", *e)
		}
		if e := o.Status.LastExit; e != nil {
			text += fmt.Sprintf(" lastExit=%+v", *e)
		}
		return text
	case *corev1.Pod:
		if o == nil {
			return "gone"
		}
		return fmt.Sprintf("%s %+v", o.Status.Phase, o.Status.ContainerStatuses)
	case *v1alpha1.VirtualMachineHost:
		if o == nil {
			return "gone"
		}
		return fmt.Sprintf("%+v", o.Status.Conditions)
	}
	return fmt.Sprintf("%T", o)
}

// has tells whether a VirtualMachine has a condition with that status and reason; an empty reason is any.
func has(vm *v1alpha1.VirtualMachine, kind string, status metav1.ConditionStatus, reason v1alpha1.Reason) bool {
	if vm == nil {
		return false
	}
	c := meta.FindStatusCondition(vm.Status.Conditions, kind)
	return c != nil && c.Status == status && (reason == "" || c.Reason == string(reason))
}

func runs(vm *v1alpha1.VirtualMachine) bool {
	return has(vm, v1alpha1.ConditionRunning, metav1.ConditionTrue, "")
}

func isReady(vm *v1alpha1.VirtualMachine) bool {
	return has(vm, v1alpha1.ConditionReady, metav1.ConditionTrue, "")
}

func isGone[O any](o *O) bool { return o == nil }

// events waits for an Event about an object with that reason, and returns its message.
func (l *lab) event(name string, reason v1alpha1.Reason) string {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), waitTimeout)
	defer cancel()
	w, err := l.Watch(ctx, &corev1.EventList{}, client.InNamespace(l.ns))
	if err != nil {
		l.Fatalf("watching events: %v", err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if event, ok := e.Object.(*corev1.Event); ok && event.InvolvedObject.Name == name && event.Reason == string(reason) {
			return event.Message
		}
	}
	l.Fatalf("waited in vain for an Event %s about %s", reason, name)
	return ""
}
