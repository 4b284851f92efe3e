package libvirtd

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestResetsAreCountedByLife(t *testing.T) {
	var l resetLog
	start := time.Unix(1e9, 0)
	var told []time.Duration // since start
	for i := range 7 {
		at := time.Duration(2*i) * time.Second
		if in, tell := l.add("a", 1, start.Add(at)); tell {
			told = append(told, at+in)
		}
	}
	got := l.of("a", 1)
	if got.Count != 7 || !got.Latest[0].Equal(start.Add(12*time.Second)) || !got.Latest[4].Equal(start.Add(4*time.Second)) {
		t.Errorf("after 7 resets, one each 2 s: %+v", got)
	}
	l.add("a", 1, start.Add(12*time.Second+100*time.Millisecond)) // of the same reboot
	if again := l.of("a", 1); again != got {
		t.Errorf("one reboot of which QEMU tells twice: %+v, then %+v", got, again)
	}
	if want := []time.Duration{0, 4 * time.Second, 8 * time.Second, 12 * time.Second, 16 * time.Second}; !slices.Equal(told, want) {
		t.Errorf("they are told after %v, want %v", told, want)
	}
	if got := l.of("a", 2); got != (Resets{}) {
		t.Errorf("the next life begins with %+v", got)
	}
	if in, tell := l.add("a", 2, start.Add(13*time.Second)); in != 0 || !tell || l.of("a", 2).Count != 1 {
		t.Errorf("the first reset of the next life: %+v, told: %t, in %v", l.of("a", 2), tell, in)
	}
	l.forget("a")
	if got := l.of("a", 2); got != (Resets{}) {
		t.Errorf("a life that ended has %+v", got)
	}
	for i := range 2 * maxExits {
		l.add(fmt.Sprint(i), 1, start)
	}
	if len(l.byID) > maxExits {
		t.Errorf("%d domains are remembered, want %d at most", len(l.byID), maxExits)
	}
}
