package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// TestHostileTenant: an administrator of one namespace, whose own guest is own, tries whatever his role lets him, and what
// the token of an agent or a right past the policies would. The guest tiny of another namespace runs on.
func TestHostileTenant(t *testing.T) {
	l := start(t)
	mine := startAlone(t) // one more namespace, in the same turn
	u := mine.tenant()
	here, there := nodes(t)[0], nodes(t)[1]
	l.apply(tiny + "  nodeSelector: {kubernetes.io/hostname: " + here + "}\n")
	own := strings.NewReplacer("name: disked", "name: own", "Seconds: 20", "Seconds: 15").Replace(disked) +
		"  nodeSelector: {kubernetes.io/hostname: " + there + "}\n"
	if err := u.kubectlAs(expand(own), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	l.vm("tiny", "to be Ready", isReady)
	l.logs("tiny").await("tiny: up")
	mine.vm("own", "to be Ready", isReady)
	mine.logs("own").await("tiny: up")
	untouched, ownUntouched := l.goesOn("tiny"), mine.goesOn("own")

	t.Log("as an agent of another node")
	stolenToken(l, there)
	untouched("what an agent of another node tries")

	t.Log("in the place of his own guest's shim")
	u.altersBerth()
	ownUntouched("what is done to its pod")

	t.Log("with pods that claim to be berths")
	u.forgesBerths(l, here)
	untouched("pods that claim to be its berth")
	ownUntouched("pods that claim to be berths beside it")

	t.Log("with a crowd of programs that are called as the other's QEMU is")
	u.pretends(l, here)

	t.Log("in the place of his own guest's shim, past the policies")
	untouched = l.goesOn("tiny")
	u.replacesShim()
	untouched("another program in the place of the other's shim")

	t.Log("to leave his disk behind")
	console := mine.logs("own")
	console.await("tiny: up")
	mine.say("own", "deaf") // there is time while it is being deleted
	console.await("tiny: deaf")
	u.leavesDisk()
	untouched("the end of the other")
}

// altersBerth: the berth own is what Berth made of it. Labels and annotations of the tenant's are welcome.
func (u tenant) altersBerth() {
	u.Helper()
	const decides, marks = "change its VirtualMachine", "leave them as they are"
	patch := func(args ...string) func() error {
		return u.kubectlDoes(append([]string{"patch", "pod", "own"}, args...)...)
	}
	u.attempts(
		attempt{"kubectl set image", u.kubectlDoes("set", "image", "pod/own", "guest="+os.Getenv("LAB_IMAGE_TOOLS")), decides},
		attempt{"a deadline", patch("-p", `{"spec":{"activeDeadlineSeconds":1}}`), decides},
		attempt{"kubectl debug", u.kubectlDoes("debug", "own", "--profile=restricted", "--target=guest", "--image="+os.Getenv("LAB_IMAGE_TOOLS")), "kubectl debug node/NAME"},
		attempt{"a resize in place", patch("--subresource=resize", "-p", `{"spec":{"containers":[{"name":"guest","resources":{"limits":{"memory":"2Gi"}}}]}}`), "change spec.memory or spec.cpu"},
		attempt{"another guest's label", u.kubectlDoes("label", "pod", "own", "--overwrite", berth.LabelVM+"=tiny"), marks},
		attempt{"no label", u.kubectlDoes("label", "pod", "own", berth.LabelVM+"-"), marks},
		attempt{"another record", u.kubectlDoes("annotate", "pod", "own", "--overwrite", berth.AnnotationSpec+"={}"), marks},
		attempt{"that it was restarted", u.kubectlDoes("annotate", "pod", "own", "--overwrite", berth.AnnotationRestartedAt+"=now"), marks},
		attempt{"no finalizer", patch("--type=merge", "-p", `{"metadata":{"finalizers":null}}`), marks},
		attempt{"no owner", patch("--type=merge", "-p", `{"metadata":{"ownerReferences":null}}`), marks},
		attempt{"a label of his own", u.kubectlDoes("label", "pod", "own", "app=web"), ""},
		attempt{"an annotation of his own", u.kubectlDoes("annotate", "pod", "own", "example.org/note=x"), ""},
		attempt{"another status of his guest", func() error {
			vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: u.ns, Name: "own"}}
			return u.api.Status().Patch(u.Context(), vm, client.RawPatch(types.MergePatchType, []byte(`{"status":{"nodeName":null}}`)))
		}, "cannot patch resource \"virtualmachines/status\""},
	)
}

// replacesShim has an administrator of the cluster do what the tenant may not: the program that comes in the place of the
// shim has no guest, and a new berth has it.
func (u tenant) replacesShim() {
	u.Helper()
	before := u.vm("own", "to be Ready", isReady)
	u.kubectl("", "set", "image", "pod/own", "guest="+os.Getenv("LAB_IMAGE_TOOLS"))
	u.vm("own", "to say so", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonBerthMutated)
	})
	if found := qemus(string(before.UID)); len(found) > 0 {
		u.Errorf("with another program in the place of its shim, the guest has the QEMUs %v", found)
	}
	after := u.vm("own", "to be Ready in a new berth", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Berth.PodUID != before.Status.Berth.PodUID
	})
	if after.Status.Berth.Image != before.Status.Berth.Image {
		u.Errorf("its new berth has the image %s, and had %s", after.Status.Berth.Image, before.Status.Berth.Image)
	}
}

// crowd is how many programs pretend to be a QEMU.
const crowd = 150

// pretends runs a crowd of programs, on a guest's node, that are called as its QEMU is and name its UUID. Its agent sees what
// happens to it all the same, and stops and starts it.
func (u tenant) pretends(of *lab, node string) {
	u.Helper()
	vm := of.vm("tiny", "to be Ready", isReady)
	untouched := of.goesOn("tiny")
	pod := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: crowd}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: %s}
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: tmp, emptyDir: {}}]
  containers:
  - name: crowd
    image: $TOOLS
    args: [pretend, "%d", qemu-system-x86_64, -uuid, %s]
    volumeMounts: [{name: tmp, mountPath: /tmp}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`, node, crowd, vm.UID)
	if err := u.kubectlAs(expand(pod), "apply", "-f", "-"); err != nil {
		u.Fatal(err)
	}
	u.pod("crowd", "to run", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning })
	u.logs("crowd").await("are called")
	all, nameless := 0, 0
	processes("./qemu-system-x86_64", func(pid string, line []byte) {
		if !isOf(line, string(vm.UID)) {
			return
		}
		all++
		if _, err := os.Readlink("/proc/" + pid + "/exe"); err != nil && strings.Contains(err.Error(), "too long") {
			nameless++
		}
	})
	if all != crowd || nameless != crowd/2 {
		u.Fatalf("%d programs pretend, and the paths of %d are too long", all, nameless)
	}

	of.patch("tiny", `{"cpu":{"cores":2}}`) // which its agent tells, once it has had a whole look at the guest
	of.vm("tiny", "to have a pending change", func(vm *v1alpha1.VirtualMachine) bool { return len(vm.Status.PendingChanges) == 1 })
	of.patch("tiny", `{"cpu":{"cores":1}}`)
	of.vm("tiny", "to have none", func(vm *v1alpha1.VirtualMachine) bool { return len(vm.Status.PendingChanges) == 0 })
	untouched("a crowd that pretends to be its QEMU")
	of.patch("tiny", `{"state":"Stopped"}`)
	vm = of.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped))
	if e := vm.Status.LastExit; e == nil || e.ExitCode != 0 || len(qemus(string(vm.UID))) > 0 {
		u.Errorf("beside a crowd the guest ended with %+v, and there are %v", e, qemus(string(vm.UID)))
	}
	of.patch("tiny", `{"state":"Running"}`)
	of.vm("tiny", "to be Ready again", isReady)
	if now := qemus(string(vm.UID)); len(now) != 1 {
		u.Errorf("started beside a crowd, the guest has the QEMUs %v", now)
	}
	of.logs("tiny").await("tiny: up")
	if err := u.kubectlAs("", "delete", "pod", "crowd"); err != nil { // for kubelet to remove what is below the longest path
		u.Error(err)
	}
}

// leavesDisk deletes the tenant's guest own in ways that would leave its disk on the node, if they were allowed.
func (u tenant) leavesDisk() {
	u.Helper()
	vm := u.vm("own", "to be Ready", isReady)
	const none = `{"metadata":{"finalizers":null}}`
	bare := func(vm, pod string) (list []attempt) {
		return append(list,
			attempt{"no finalizer of the VirtualMachine", u.kubectlDoes("patch", "vm", "own", "--type=merge", "-p", none), vm},
			attempt{"no finalizer of its pod", u.kubectlDoes("patch", "pod", "own", "--type=merge", "-p", none), pod})
	}
	u.attempts(bare("", "leave them as they are")...)
	err := u.kubectlAs("", "delete", "vm", "own", "--wait=false", "--cascade=orphan")
	if err != nil && !strings.Contains(err.Error(), "wait until the operator has put it back") {
		u.Error(err)
	}
	if err != nil {
		u.vm("own", "to have its finalizer again", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && len(vm.Finalizers) > 0 })
		err = u.kubectlAs("", "delete", "vm", "own", "--wait=false", "--cascade=orphan")
	}
	if err != nil {
		u.Error(err)
	}
	u.attempts(bare("the verb repair", "leave them as they are")...)
	if left := u.onNode(vm.Status.NodeName, "ls", "/var/lib/berth/vms/"+string(vm.UID)); !strings.Contains(left, "root.qcow2") {
		u.Errorf("the disk went before its guest: there are %q", left)
	}
	if err := u.kubectlAs("", "delete", "pod", "own", "--force", "--grace-period=0"); err != nil {
		u.Error(err)
	}
	u.vm("own", "to be gone", isGone)
	u.pod("own", "to be gone", isGone)
	nothingLeft(u.lab, string(vm.UID))
}
