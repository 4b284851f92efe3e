package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/test/env"
)

// TestBerthThatDoesNotCome has a mirror of images that lacks that of the shim. QEMU is begun early, once, and not for long;
// a guest beside it runs on.
func TestBerthThatDoesNotCome(t *testing.T) {
	l := start(t)
	node := nodes(t)[0]
	onNode := tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	l.apply(strings.Replace(onNode, "name: tiny", "name: beside", 1))
	l.vm("beside", "to be Ready", isReady)
	untouched := l.goesOn("beside")
	comes := l.mutates("/absent/", `{op: "replace", path: "/spec/containers/0/image", value: "$REGISTRY/absent/" + object.spec.containers[0].image.find("[^/]+$")}`)
	l.apply(onNode)
	uid := string(l.vm("tiny", "to say why", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonBerthNotStarted)
	}).UID)
	starts := func() string {
		return strings.TrimSpace(l.onNode(node, "sh", "-c", "grep -c 'starting up libvirt' /var/log/libvirt/qemu/"+berth.DomainName(l.ns, "tiny")+".log; true"))
	}
	env.Eventually(t, "QEMU to be begun early", func() bool { return len(qemus(uid)) == 1 })
	begun := time.Now()
	ended := func() bool { return len(qemus(uid)) == 0 }
	for !ended() { // a minute after its berth was seen
		env.Steadily(t, "the guest not to run", time.Second, func() bool {
			return !runs(l.vm("tiny", "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil }))
		})
		if time.Since(begun) > 3*time.Minute {
			t.Fatal("QEMU is left, without a container")
		}
	}
	t.Logf("QEMU waited %v for its container", time.Since(begun))
	env.Steadily(t, "no QEMU to be begun again", 10*time.Second, ended)
	if n := starts(); n != "1" {
		t.Errorf("QEMU was started %s times, want once", n)
	}
	untouched("a berth that does not come")

	comes()
	l.kubectl("", "delete", "pod", "tiny", "--wait=false")
	l.vm("tiny", "to be Ready once the image is there", isReady)
	if n := starts(); n != "2" {
		t.Errorf("QEMU was started %s times, want twice", n)
	}
	l.pod("tiny", "to have an image", func(p *corev1.Pod) bool { return p != nil && !strings.Contains(p.Spec.Containers[0].Image, "/absent/") })
	untouched("its repair")
}
