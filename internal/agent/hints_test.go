package agent

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/qga"
)

func TestSightsFromAfar(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	runs := libvirtd.Domain{Exists: true, ID: 7, State: libvirtd.Running}
	was := fromAfar(runs, []int{42})
	paused := runs
	paused.State, paused.Pause = libvirtd.Paused, libvirtd.PausedByUser
	again := runs
	again.ID = 8
	for _, c := range []struct {
		name   string
		what   string
		after  time.Duration
		worthy bool
	}{
		{"the same", was, time.Minute, false},
		{"the same, long after", was, fullLook, true},
		{"the same, after the clock jumped back", was, -time.Hour, true},
		{"paused", fromAfar(paused, []int{42}), time.Minute, true},
		{"another life of the domain", fromAfar(again, []int{42}), time.Minute, true},
		{"another QEMU", fromAfar(runs, []int{43}), time.Minute, true},
		{"a second QEMU", fromAfar(runs, []int{42, 43}), time.Minute, true},
		{"no QEMU", fromAfar(runs, nil), time.Minute, true},
		{"no domain", fromAfar(libvirtd.Domain{}, []int{42}), time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHints()
			if !h.isNew("web", was, now) {
				t.Error("one never looked at is not new")
			}
			h.saw("web", was, now)
			if got := h.isNew("web", c.what, now.Add(c.after)); got != c.worthy {
				t.Errorf("worth a look: %v, want %v", got, c.worthy)
			}
			if _, ask := h.agent("web", true, true, now); ask == nil {
				t.Error("its agent is not asked")
			} else if h.answer(ask, qga.Info{}, nil, now); !h.isNew("web", was, now.Add(firstInfo)) {
				t.Error("its agent is not asked again")
			}
			h.unseen("web")
			if !h.isNew("web", was, now) {
				t.Error("one that is to be looked at is not new")
			}
		})
	}
}
