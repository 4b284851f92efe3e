package virtualmachine

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/host/qga"
)

func TestGuestAgentIsAskedOnceAndRarelyAfter(t *testing.T) {
	const uid = types.UID("a")
	now := time.Unix(1e9, 0)
	h := newGuestCache()
	look := func(connected, runs bool) (agentInfo, *agentInfo) { return h.guestAgent(uid, connected, runs, now) }

	if _, ask := look(false, true); ask != nil {
		t.Error("an agent that is not there is asked")
	}
	if _, ask := look(true, false); ask != nil {
		t.Error("a guest that stands still is asked")
	}
	_, first := look(true, true)
	if first == nil {
		t.Fatal("an agent that connected is not asked")
	}
	if _, again := look(true, true); again != nil {
		t.Error("an agent is asked twice at a time")
	}
	if h.answered(first, qga.Info{}, errors.New("silent"), now) {
		t.Error("silence is news")
	}
	if known, ask := look(true, true); known.answered || ask != nil {
		t.Error("an agent that was silent counts as answering, or is asked at once")
	}
	now = now.Add(firstInfo)
	_, second := look(true, true)
	if second == nil {
		t.Fatal("an agent that was silent is not asked again")
	}
	told := qga.Info{Hostname: "web", OS: qga.OS{ID: "debian"}}
	if !h.answered(second, told, nil, now) {
		t.Error("a first answer is no news")
	}
	if known, ask := look(true, true); !known.answered || known.info.Hostname != "web" || known.info.OS != "debian" || ask != nil {
		t.Errorf("after the answer there is %+v", known)
	}
	now = now.Add(lastInfo)
	_, third := look(true, true)
	if third == nil {
		t.Fatal("an old answer is not renewed")
	}
	if h.answered(third, told, nil, now) {
		t.Error("the same answer is news")
	}
	look(false, true)
	h.answered(third, qga.Info{Hostname: "late"}, nil, now)
	if known, ask := look(true, true); known.answered || ask == nil {
		t.Error("a new connection is not asked, or has the old one's answer")
	}
}

// TestAGuestAgentThatReconnectsIsAskedRarely: a guest can open and close its agent's port as often as it likes, and give
// another answer each time.
func TestAGuestAgentThatReconnectsIsAskedRarely(t *testing.T) {
	const uid = types.UID("a")
	now := time.Unix(1e9, 0)
	h := newGuestCache()
	reconnect := func() (known agentInfo, asked bool) {
		h.guestAgent(uid, false, true, now)
		known, ask := h.guestAgent(uid, true, true, now)
		if ask != nil {
			h.answered(ask, qga.Info{Hostname: now.String()}, nil, now)
		}
		return known, ask != nil
	}
	var asked []time.Duration
	for begin := now; now.Sub(begin) <= 10*time.Minute; now = now.Add(100 * time.Millisecond) {
		if _, is := reconnect(); is {
			asked = append(asked, now.Sub(begin))
		}
	}
	want := []time.Duration{0}
	for _, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60, 60} {
		if next := want[len(want)-1] + pause*time.Second; next <= 10*time.Minute {
			want = append(want, next)
		}
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked at (-want +got):\n%s", diff)
	}
	if known, is := reconnect(); is || known.asked || !known.again.After(now) {
		t.Errorf("one that is not asked yet does not say when it is to be: %+v", known)
	}
	now = now.Add(2 * lastReconnectPause)
	for _, want := range []bool{true, false} { // as at first, for who was quiet
		if _, is := reconnect(); is != want {
			t.Errorf("after a while of quiet a connection is asked: %t, want %t", is, want)
		}
	}
	now = now.Add(firstReconnectPause)
	if _, is := reconnect(); !is {
		t.Error("its second connection is not asked after the first pause")
	}
}
