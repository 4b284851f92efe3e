package guest

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/shim/client"
)

// sessionOf is one that has been silent for so long.
func sessionOf(t *testing.T, s *Sessions, kind client.Kind, silent time.Duration) *session {
	t.Helper()
	_, shims := pair(t)
	n := &session{
		sessions: s, conn: shims, ended: make(chan struct{}), began: time.Now().Add(-time.Hour),
		request: client.Request{Kind: kind, Command: guestlink.Command{Args: []string{"\x1b[2Jsleep", strings.Repeat("1", 100)}}},
	}
	n.active.Store(time.Now().Add(-silent).UnixNano())
	return n
}

func TestWhoMakesRoomForACommand(t *testing.T) {
	const probe, command = client.Readiness, client.Exec
	for name, test := range map[string]struct {
		commands, probes int
		oldest           time.Duration // how long one of them, the fourth, has been silent; others half as long
		kind             client.Kind
		refused, evicted bool
	}{
		"there is room":                             {31, 4, time.Hour, command, false, false},
		"one was silent for a minute":               {32, 0, time.Minute + time.Second, command, false, true},
		"none was silent for a minute":              {32, 0, time.Minute - time.Second, command, true, false},
		"a probe takes no command's place":          {32, 3, time.Hour, probe, false, false},
		"nor another probe's":                       {0, 4, time.Hour, probe, true, false},
		"a command takes no probe's":                {0, 4, time.Hour, command, false, false},
		"a command whose silence is longest of all": {32, 4, 24 * time.Hour, command, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := New("web", func() {}, t.Logf)
			var all []*session
			for i := range test.commands + test.probes {
				kind, silent := command, test.oldest/2
				if i == 3 {
					silent = test.oldest
				}
				if i >= test.commands {
					kind = probe
				}
				n := sessionOf(t, s, kind, silent)
				if refusal := s.admit(n); refusal != nil {
					t.Fatalf("number %d: %+v", i, refusal)
				}
				all = append(all, n)
			}
			refusal := s.admit(sessionOf(t, s, test.kind, 0))
			if (refusal != nil) != test.refused {
				t.Errorf("refused: %+v", refusal)
			}
			if refusal != nil && (refusal.code != client.CodeRefused || !strings.Contains(refusal.message, `already: end one; the oldest, "\x1b[2Jsleep 111`) || len(refusal.message) > 200) {
				t.Errorf("refused with %d %q", refusal.code, refusal.message)
			}
			for i, n := range all {
				if n.isOver() != (test.evicted && i == 3) {
					t.Errorf("number %d was hung up: %v", i, n.isOver())
				}
			}
		})
	}
}

func TestAClientThatHasHungUpTakesNoPlace(t *testing.T) {
	s := New("web", func() {}, t.Logf)
	n := sessionOf(t, s, client.Exec, 0)
	n.end(client.CodeLost, "")
	if refusal := s.admit(n); refusal == nil || len(s.sessions) > 0 {
		t.Errorf("got %+v and %d sessions", refusal, len(s.sessions))
	}
}

func TestHowLongACommandWaitsForTheProgram(t *testing.T) {
	for name, test := range map[string]struct {
		kind    client.Kind
		started time.Duration // ago; 0: not
		direct  bool
		want    string
	}{
		"a guest that has been up for long": {client.Exec, 3 * time.Minute, false, "no guest program answers: with spec.guestTools Offered "},
		"one that boots a kernel directly":  {client.Exec, 3 * time.Minute, true, "no guest program answers: the guest boots a kernel directly"},
		"a probe of one that has just":      {client.Readiness, time.Second, false, "no guest program answers: "},
		"a probe of one that has not":       {client.Readiness, 0, true, "the guest does not run yet: kubectl describe vm web tells why"},
	} {
		s := New("web", func() {}, t.Logf)
		s.direct = test.direct
		if test.started > 0 {
			s.started = time.Now().Add(-test.started)
		}
		if refusal := s.ready(sessionOf(t, s, test.kind, 0)); refusal == nil || refusal.code != client.CodeRefused || !strings.HasPrefix(refusal.message, test.want) {
			t.Errorf("%s: got %+v, want %q", name, refusal, test.want)
		}
	}
}
