package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/env"
)

// commits makes a VirtualMachineCommit of a disk of the guest one; more are other fields.
func (l *lab) commits(name, disk, more string) {
	l.Helper()
	l.apply(fmt.Sprintf(`
apiVersion: berth.dev/v1alpha1
kind: VirtualMachineCommit
metadata: {name: %s}
spec: {virtualMachineName: one, diskName: %s, image: "$REGISTRY/%s/%s:1"%s}
`, name, disk, l.ns, name, more))
}

// committed waits until a commit is over, or says a reason.
func (l *lab) committed(name string, reason v1alpha1.Reason) *v1alpha1.VirtualMachineCommit {
	l.Helper()
	return await(l.Context(), l, &v1alpha1.VirtualMachineCommitList{}, l.ns, name, "commit "+name+" to say "+string(reason), func(c *v1alpha1.VirtualMachineCommit) bool {
		return c != nil && condition.Reason(c.Status.Conditions, v1alpha1.ConditionComplete) == reason
	})
}

// TestCommit: a disk of a guest, whether it runs or not, is an image that a guest on the other node has.
func TestCommit(t *testing.T) {
	l := start(t)
	nodes := nodes(t)
	l.apply(guestWith("one", "{name: root, image: $TINY}", blank("data", "96Mi", "")) + on(nodes[0]))
	l.vm("one", "to be Ready", isReady)

	t.Log("while it runs")
	l.keep("one", "running", "data")
	l.commits("running", "data", "")
	c := l.committed("running", v1alpha1.ReasonCommitted)
	if s := c.Status; s.Digest == "" || s.Size.Value() < 100 || s.Quiesced == nil || *s.Quiesced || s.TakenAt == nil || s.FinishedAt == nil ||
		!condition.Is(s.Conditions, v1alpha1.ConditionFailed, metav1.ConditionFalse) {
		t.Errorf("its status is %+v", s)
	}
	l.keep("one", "changed", "data")

	t.Log("while it is stopped")
	l.patch("one", `{"state":"Stopped"}`)
	l.vm("one", "to be stopped", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.Phase == v1alpha1.PhaseStopped })
	l.commits("stopped", "data", "")
	l.commits("overlay", "root", ", ttlSecondsAfterFinished: 20")
	if s := l.committed("stopped", v1alpha1.ReasonCommitted).Status; s.Quiesced == nil || !*s.Quiesced {
		t.Error("a guest that does not run was not quiet")
	}
	l.committed("overlay", v1alpha1.ReasonCommitted)

	t.Log("on the other node")
	l.apply(guestWith("two", `{name: data, image: "$REGISTRY/`+l.ns+`/running:1"}`, `{name: more, image: "$REGISTRY/`+l.ns+`/stopped:1"}`) + on(nodes[1]))
	l.kept("two", "running", "data")
	l.kept("two", "changed", "more")

	t.Log("it goes on")
	l.patch("one", `{"state":"Running"}`)
	l.vm("one", "to be Ready", isReady)
	l.kept("one", "changed", "data")

	t.Log("what cannot be")
	l.commits("nothing", "none", "")
	l.committed("nothing", v1alpha1.ReasonNothingToCommit)
	l.commits("loud", "data", ", quiesce: Required")
	l.committed("loud", v1alpha1.ReasonNotQuiesced)
	if out := l.kubectl("", "get", "pods", "-o", "name"); strings.Count(out, "pod/") != 2 {
		t.Errorf("pods are left: %s", out)
	}
	env.Eventually(l, "a commit to be deleted after its time", func() bool {
		return !strings.Contains(l.kubectl("", "get", "vmcommit", "-o", "name"), "overlay")
	})
}

// TestCommitsKilled commits a disk on which a guest writes files, and kills the agent again and again while that goes on. The
// guest's file system is as it was unmounted, the guest writes on, and nothing is left; the next agent does the commit anew.
func TestCommitsKilled(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	l.apply(`
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: one}
spec:
  memory: {size: 512Mi}
  disks: [{name: root, image: $CLOUD}, ` + blank("data", "256Mi", "") + `]
` + on(node))
	vm := l.vm("one", "to have its guest program and its guest agent answer", func(vm *v1alpha1.VirtualMachine) bool {
		return hasTools(vm) && condition.Is(vm.Status.Conditions, v1alpha1.ConditionGuestAgentConnected, metav1.ConditionTrue)
	})
	l.sh("one", "mkfs.ext4 -q /dev/disk/by-id/virtio-data && mkdir /data && mount /dev/disk/by-id/virtio-data /data")
	l.sh("one", `systemd-run -q sh -c 'while :; do for i in $(seq 99); do head -c 99999 /dev/urandom >/data/$i; done; date +%s%N >/data/round; done'`)
	writes := func() {
		t.Helper()
		before := l.exec("one", nil, "cat", "/data/round").out
		env.Eventually(l, "the guest to write on", func() bool { return l.exec("one", nil, "cat", "/data/round").out != before })
	}
	env.Eventually(l, "the guest to write", func() bool { return l.exec("one", nil, "test", "-s", "/data/round").code == 0 })

	t.Log("a commit that nobody disturbs")
	l.commits("quiet", "data", ", quiesce: Required")
	if s := l.committed("quiet", v1alpha1.ReasonCommitted).Status; s.Quiesced == nil || !*s.Quiesced {
		t.Error("the guest did not hold its writes")
	}
	writes()
	l.apply(guestWith("two", `{name: data, image: "$REGISTRY/`+l.ns+`/quiet:1"}`) + on(node))
	two := l.vm("two", "to be Ready", isReady)
	path := "/var/lib/berth/images/" + strings.TrimPrefix(two.Status.Disks[0].ImageDigest, "sha256:") + "/disk.qcow2"
	t.Log(l.onNode(node, "sh", "-ec", fmt.Sprintf("qemu-img check %s; raw=$(mktemp); qemu-img convert -O raw %[1]s $raw; e2fsck -fn $raw; rm $raw", path)))

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kill := func(round int, of string) {
		name := fmt.Sprintf("%s-%d", of, round)
		l.commits(name, "data", "")
		time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond) // at any moment of its life
		l.onNode(node, "pkill", "-KILL", "-f", "^/berth-agent")
		victim{l, "berth-agent", node}.revive()
		l.committed(name, v1alpha1.ReasonCommitted)
	}
	left := func() {
		t.Helper()
		if found := l.onNode(node, "sh", "-c", fmt.Sprintf("ls /var/lib/berth/vms/%s/commit.part 2>/dev/null; pgrep -f [g]uest=berth-commit-%[1]s; true", vm.UID)); found != "" {
			t.Errorf("left: %s", found)
		}
	}
	for round := range deep(3, 20, 100) {
		kill(round, "running")
		writes()
		left()
	}
	l.patch("one", `{"state":"Stopped"}`)
	l.vm("one", "to be stopped", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.Phase == v1alpha1.PhaseStopped })
	for round := range deep(1, 10, 50) {
		kill(round, "stopped")
		left()
	}
}
