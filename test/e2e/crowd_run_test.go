package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// thrower runs guests that are thrown away.
type thrower struct {
	*user
	mu   sync.Mutex
	seen map[types.UID]bool // VirtualMachines that there ever were
}

func (l *lab) thrower() *thrower {
	l.Helper()
	th := &thrower{user: l.user(), seen: map[types.UID]bool{}}
	w, err := l.Watch(l.Context(), &v1alpha1.VirtualMachineList{}, client.InNamespace(l.ns))
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(w.Stop)
	go func() {
		for e := range w.ResultChan() {
			if vm, is := e.Object.(*v1alpha1.VirtualMachine); is {
				th.mu.Lock()
				th.seen[vm.UID] = true
				th.mu.Unlock()
			}
		}
	}()
	return th
}

// runRM is the command line of a guest that ends with a code as soon as it is up.
func runRM(code int) []string {
	return strings.Fields(expand(fmt.Sprintf("run --rm -p 80 %s -- exit=%d", kernelRun, code)))
}

// throwsAway runs a guest to its end, which has that code, and shows its console from the first byte to the last: so many.
func (th *thrower) throwsAway(code int) int {
	th.Helper()
	out, errOut, got := th.try(runRM(code)...)
	if got != code {
		th.Errorf("exit=%d ends with %d: %s", code, got, errOut)
	}
	for _, text := range []string{"Linux version", "tiny: up", fmt.Sprintf("tiny: ends with %d\n", code), "reboot: Power down"} {
		if strings.Count(out, text) != 1 {
			th.Errorf("exit=%d does not show %q once", code, text)
		}
	}
	if !strings.HasSuffix(out, "] reboot: Power down\n") {
		th.Errorf("exit=%d: the console ends before its last line:\n%s", code, out)
	}
	return len(out)
}

// nothingLeft: there is nothing of any guest that ever was.
func (th *thrower) nothingLeft(runs int) {
	th.Helper()
	within(th, waitTimeout, func() (left string) {
		for _, list := range []client.ObjectList{&v1alpha1.VirtualMachineList{}, &corev1.PodList{}, &corev1.ServiceList{}} {
			if err := th.List(th.Context(), list, client.InNamespace(th.ns)); err != nil {
				return err.Error()
			}
			_ = meta.EachListItem(list, func(o runtime.Object) error {
				left += fmt.Sprintf("%T %s is left; ", o, o.(client.Object).GetName())
				return nil
			})
		}
		return left
	})
	th.mu.Lock()
	defer th.mu.Unlock()
	th.Logf("%d guests were made by %d runs", len(th.seen), runs)
	for uid := range th.seen {
		nothingLeft(th.lab, string(uid))
	}
}

// TestThrowAwayCrowd: guests of run --rm end with their own codes, show their consoles to the last byte, and leave nothing:
// many in turn, many at once, and such whose client is killed, whatever it is at.
func TestThrowAwayCrowd(t *testing.T) {
	t.Parallel()
	t.Run("in turn", func(t *testing.T) {
		th, runs := start(t).thrower(), deep(6, 50, 200)
		for i := range runs {
			th.throwsAway(i % 256)
		}
		th.nothingLeft(runs)
	})
	t.Run("at once", func(t *testing.T) {
		th, runs := start(t).thrower(), deep(5, 20, 40)
		var all sync.WaitGroup
		for i := range runs {
			all.Go(func() { th.throwsAway(255 - i) })
		}
		all.Wait()
		th.nothingLeft(runs)
	})
	t.Run("with clients that are killed", func(t *testing.T) {
		th, runs, seed := start(t).thrower(), deep(4, 20, 40), time.Now().UnixNano()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(uint64(seed), 0))
		shown := th.throwsAway(0)
		var all sync.WaitGroup
		atOnce := make(chan struct{}, 4)
		for i := range runs {
			moment, bytes := time.Duration(random.IntN(3000))*time.Millisecond, random.Int64N(int64(shown))
			atOnce <- struct{}{}
			all.Go(func() {
				defer func() { <-atOnce }()
				run := exec.CommandContext(t.Context(), "kubectl", append([]string{"vm"}, runRM(i)...)...)
				run.Env = th.environment
				out, _ := run.StdoutPipe()
				if err := run.Start(); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 { // before there is a console
					time.Sleep(moment)
				} else {
					_, _ = io.CopyN(io.Discard, out, bytes)
				}
				_ = run.Process.Kill()
				_ = run.Wait()
			})
		}
		all.Wait()
		th.nothingLeft(runs + 1)
	})
}
