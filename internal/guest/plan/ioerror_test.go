package plan

import (
	"testing"
	"time"
)

// TestAFailingDiskIsTriedEveryTenSeconds: also where it fails so soon that nobody sees the guest run in between.
func TestAFailingDiskIsTriedEveryTenSeconds(t *testing.T) {
	w := resolved(t, Want{VM: vm(), Berth: fresh(used)})
	h := runs(func(h *Have) { h.Domain, h.Facts.Tools = DomainPausedOnIOError, false })
	var m Memory
	resumed := 0
	for at := time.Duration(0); at < 65*time.Second; at += 200 * time.Millisecond {
		var next Next
		if next, m = Decide(w, h, m, now.Add(at)); names(next.Steps) == "Resume" {
			resumed++
		} else if len(next.Steps) > 0 || next.Wake <= 0 || next.Wake > retryIOAfter {
			t.Fatalf("after %s: %v, and a look in %s", at, next.Steps, next.Wake)
		}
	}
	if resumed != 6 {
		t.Errorf("it was resumed %d times in 65 s, not 6", resumed)
	}
}
