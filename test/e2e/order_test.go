package e2e

import (
	"flag"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// Tests run in this order: one by one those that disturb more than a node (startAlone); then those that disturb one,
// node by node (startOn); then all others (start), so many at a time.
const sideBySide = 6

var (
	slots      = make(chan struct{}, sideBySide)
	disturbing sync.WaitGroup // who disturbs a node and has not ended
	disturbed  sync.Map       // by node, the mutex of those who disturb it
)

// depth is how long the tests of faults take.
var depth = flag.Int("depth", 0, "how far tests of faults go: 0 as make test, 1 as make faults, 2 as make soak")

// deep chooses among what make test, make faults and make soak have.
func deep[T any](test, faults, soak T) T { return []T{test, faults, soak}[min(*depth, 2)] }

// nodes of the lab, two at least.
func nodes(t testing.TB) []string {
	t.Helper()
	all := strings.Fields(env.Need(t, "LAB_NODES", "a lab; make lab-up, then eval \"$(make -s lab-env)\""))
	if len(all) < 2 {
		env.Missing(t, "needs a lab of two nodes: make lab-up NODES=2")
	}
	return all
}

// waitForNodes has a test wait for its turn among those that need all nodes as they should be.
func waitForNodes(t *testing.T) {
	t.Helper()
	t.Parallel()
	disturbing.Wait()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
}

// start gives a test its namespace; the test runs side by side with others.
func start(t *testing.T) *lab {
	t.Helper()
	waitForNodes(t)
	return startAlone(t)
}

// startOn is start for a test that disturbs a node, and nothing else.
func startOn(t *testing.T, node string) *lab {
	t.Helper()
	disturbing.Add(1) // before any of the others waits: they all begin when every test has got as far as this
	t.Cleanup(disturbing.Done)
	t.Parallel()
	turn, _ := disturbed.LoadOrStore(node, &sync.Mutex{})
	turn.(*sync.Mutex).Lock()
	t.Cleanup(turn.(*sync.Mutex).Unlock)
	return startAlone(t)
}
