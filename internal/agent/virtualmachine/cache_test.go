package virtualmachine

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/qga"
)

func TestGuestsThatChangedAreLookedAtAgain(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	runs := libvirtd.Domain{Exists: true, ID: 7, State: libvirtd.Running}
	was := fingerprint(runs, []int{42})
	paused := runs
	paused.State, paused.Pause = libvirtd.Paused, libvirtd.PausedByUser
	again := runs
	again.ID = 8
	for _, c := range []struct {
		name    string
		what    string
		after   time.Duration
		changed bool
	}{
		{"the same", was, time.Minute, false},
		{"the same, long after", was, resyncPeriod, true},
		{"the same, after the clock jumped back", was, -time.Hour, true},
		{"paused", fingerprint(paused, []int{42}), time.Minute, true},
		{"another life of the domain", fingerprint(again, []int{42}), time.Minute, true},
		{"another QEMU", fingerprint(runs, []int{43}), time.Minute, true},
		{"a second QEMU", fingerprint(runs, []int{42, 43}), time.Minute, true},
		{"no QEMU", fingerprint(runs, nil), time.Minute, true},
		{"reset", fingerprint(libvirtd.Domain{Exists: true, ID: 7, State: libvirtd.Running, Resets: libvirtd.Resets{Count: 1}}, []int{42}), time.Minute, true},
		{"no domain", fingerprint(libvirtd.Domain{}, []int{42}), time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newGuestCache()
			if !h.changed("web", was, now) {
				t.Error("one never looked at is not new")
			}
			h.recordFingerprint("web", was, now)
			if got := h.changed("web", c.what, now.Add(c.after)); got != c.changed {
				t.Errorf("changed: %v, want %v", got, c.changed)
			}
			if _, ask := h.guestAgent("web", true, true, now); ask == nil {
				t.Error("its agent is not asked")
			} else if h.answered(ask, qga.Info{}, nil, now); !h.changed("web", was, now.Add(firstInfo)) {
				t.Error("its agent is not asked again")
			}
			h.dropFingerprint("web")
			if !h.changed("web", was, now) {
				t.Error("one that is to be looked at is not new")
			}
		})
	}
}
