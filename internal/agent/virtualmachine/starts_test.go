package virtualmachine

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestStartsAreShared: a namespace whose guests start slowly, however many they are, has the others wait for one slot.
func TestStartsAreShared(t *testing.T) {
	now := time.Now()
	var woken []types.UID
	s := &starts{wake: func(vm types.UID) { woken = append(woken, vm) }, now: func() time.Time { return now }, running: map[string]int{}}
	begin := func(vm types.UID, namespace string, want bool) {
		t.Helper()
		if got := s.begin(vm, namespace); got != want {
			t.Errorf("%s begins: %t, want %t", vm, got, want)
		}
	}
	for i := range 10 {
		begin(types.UID(fmt.Sprint("slow", i)), "slow", i < maxStarts) // alone it has all
	}
	begin("quick0", "quick", false)
	s.end("slow")
	if len(woken) != 1 || woken[0] != "quick0" {
		t.Errorf("woken are %v, want the guest of the namespace without a slot", woken)
	}
	begin("slow4", "slow", false) // though it asks first
	begin("quick0", "quick", true)
	s.end("slow")
	begin("quick1", "quick", true)
	s.end("quick")
	if woken[len(woken)-1] != "slow4" {
		t.Errorf("woken are %v, want the one that waits for longest", woken)
	}

	s.end("slow")
	s.end("slow")
	begin("slow4", "slow", true)
	if woken[len(woken)-1] != "slow5" {
		t.Errorf("woken are %v, want the next, too, as there is another slot", woken)
	}
	begin("gone", "gone", true)
	begin("quick2", "quick", true) // it waits for nobody
	begin("gone2", "late", false)
	s.end("gone")
	begin("slow6", "slow", false)
	now = now.Add(startTurn) // gone2 was deleted meanwhile
	begin("slow6", "slow", true)
}

// TestAStartThatFindsNoSlot waits without a worker, says so, and goes on when a slot is free.
func TestAStartThatFindsNoSlot(t *testing.T) {
	_, n := one(t)
	var woken []types.UID
	n.agent.starts.wake = func(vm types.UID) { woken = append(woken, vm) }
	for i := range maxStarts {
		n.agent.starts.begin(types.UID(fmt.Sprint(i)), "another")
	}
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarting)
	if n.starts != 0 {
		t.Error("it was started beside all slots")
	}
	n.agent.starts.end("another")
	if len(woken) != 1 || woken[0] != vmUID {
		t.Errorf("woken are %v", woken)
	}
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
}
