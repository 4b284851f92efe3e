package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// seeds is a guest that is never let run, so that its disk stays as it was seeded.
const seeds = `---
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: seeds}
spec:
  state: Paused
  memory: {size: 128Mi}
  disks: [{name: root, image: $CLOUD, persistentVolumeClaim: {claimName: root}}]
`

// TestSeedingKilled kills agent or worker at random moments while a claim is seeded. The guest gets the whole image all the
// same, as one that nobody disturbed.
func TestSeedingKilled(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, mode := range []string{"Filesystem", "Block"} {
		whole := ""
		for i := range 1 + deep(1, 50, 100) { // the first is left alone
			l.apply(claimOf("root", mode, "ReadWriteOnce", "2Gi") + seeds + on(node))
			l.vm("seeds", "to be seeded", func(vm *v1alpha1.VirtualMachine) bool {
				return has(vm, v1alpha1.ConditionDisksReady, "False", v1alpha1.ReasonSeeding) || phase(v1alpha1.PhasePaused)(vm)
			})
			if i > 0 {
				after, worker := time.Duration(random.IntN(3000))*time.Millisecond, random.IntN(2) == 0
				t.Logf("%s, number %d: killed after %v, the worker alone: %t", mode, i, after, worker)
				time.Sleep(after)
				l.killsSeeding(node, worker)
			}
			vm := l.vm("seeds", "to be Paused", phase(v1alpha1.PhasePaused))
			if d := vm.Status.Disks[0]; !d.Seeded || d.ImageDigest == "" || d.Progress != nil {
				t.Errorf("%s, number %d: the status says %+v", mode, i, d)
			}
			switch sum := l.sumOf(node, mode); {
			case i == 0:
				whole = sum
			case sum != whole:
				t.Errorf("%s, number %d: the disk's MD5 is %s, not %s", mode, i, sum, whole)
			}
			volumes := l.volumes()
			l.kubectl("", "delete", "vm/seeds", "pvc/root")
			l.unused(volumes...)
		}
	}
}

// killsSeeding kills the worker of a node, if it has one, or the agent.
func (l *lab) killsSeeding(node string, worker bool) {
	l.Helper()
	if worker {
		l.onNode(node, "sh", "-c", "pkill -KILL -f '^/proc/self/exe worker$' || true")
		return
	}
	l.onNode(node, "sh", "-c", "pkill -KILL -f '^/berth-agent -' || true")
	victim{l, "berth-agent", node}.revive()
}

// sumOf is the MD5 of the disk on the claim root.
func (l *lab) sumOf(node, mode string) string {
	l.Helper()
	if mode == "Filesystem" {
		l.apply(holder("reads", node, "1879113728", []string{"root"}, nil))
		defer l.kubectl("", "delete", "pod", "reads")
		l.kubectl("", "wait", "pod/reads", "--for=condition=Ready", "--timeout=2m")
		return l.sh("reads", "md5sum </disks/root/disk.img")
	}
	file, err := os.Open(filepath.Join(os.Getenv("LAB_DIR"), "volumes", l.volumes()[0]))
	if err != nil {
		l.Fatal(err)
	}
	defer file.Close()
	sum := exec.CommandContext(l.Context(), "md5sum")
	sum.Stdin = file
	out, err := sum.Output()
	if err != nil {
		l.Fatal(fmt.Errorf("reading the volume: %w", err))
	}
	return strings.TrimSpace(string(out))
}
