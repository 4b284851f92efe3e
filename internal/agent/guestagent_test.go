package agent

import (
	"errors"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/host/qga"
)

func TestGuestAgentIsAskedOnceAndRarelyAfter(t *testing.T) {
	const uid = types.UID("a")
	now := time.Unix(1e9, 0)
	h := newHints()
	look := func(connected, runs bool) (guestInfo, *guestInfo) { return h.agent(uid, connected, runs, now) }

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
	if h.answer(first, qga.Info{}, errors.New("silent"), now) {
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
	if !h.answer(second, told, nil, now) {
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
	if h.answer(third, told, nil, now) {
		t.Error("the same answer is news")
	}
	look(false, true)
	h.answer(third, qga.Info{Hostname: "late"}, nil, now)
	if known, ask := look(true, true); known.answered || ask == nil {
		t.Error("a new connection is not asked, or has the old one's answer")
	}
}
