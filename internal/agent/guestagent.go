package agent

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/qga"
)

// How long what a guest agent told is good for. The first answer is asked for again soon, since a guest may have no
// name yet when its agent starts.
const (
	firstInfo = time.Minute
	lastInfo  = time.Hour
	// infoTimeout bounds one conversation, of a few questions.
	infoTimeout = 20 * time.Second
)

// guestInfo is what one connection of a guest agent has told. It is forgotten with the connection.
type guestInfo struct {
	asking   bool
	answered bool
	info     *v1alpha1.GuestInfo
	again    time.Time // when to ask again
	wait     time.Duration
}

// due: it is time to ask.
func (i *guestInfo) due(now time.Time) bool { return !i.asking && !now.Before(i.again) }

// observeAgent fills in what the guest's agent says of it. It is asked in the background, once for a connection and
// rarely after. Until its first answer the status stays as it is, so that both are written at once, and so that a
// restart of ours is not to be seen there.
func (a *Agent) observeAgent(g *guest, h *plan.Have, connected bool) {
	known, ask := a.hints.agent(g.uid, connected, h.Domain == plan.DomainRunning, a.now())
	if ask != nil {
		go a.askAgent(g, ask)
	}
	switch {
	case !connected:
	case known.answered:
		h.AgentConnected, h.Guest = true, known.info
	case g.VM != nil:
		h.AgentConnected = condition.Is(g.VM.Status.Conditions, v1alpha1.ConditionGuestAgentConnected, metav1.ConditionTrue)
		h.Guest = g.VM.Status.Guest
	}
}

// askAgent asks a guest who it is, and has the guest looked at if the answer is new.
func (a *Agent) askAgent(g *guest, into *guestInfo) {
	ctx, cancel := context.WithTimeout(a.life, infoTimeout)
	defer cancel()
	told, err := qga.Ask(ctx, a.libvirt, string(g.uid))
	if err != nil {
		a.meters.agentFailures.Inc()
		ctrl.Log.WithName("host").V(1).Info("Guest agent does not answer", "vm", g.uid, "cause", err.Error())
	}
	if a.hints.answer(into, told, err, a.now()) {
		a.enqueue(g.uid)
	}
}

// infoOf makes what a guest says of itself fit to be shown.
func infoOf(told qga.Info) *v1alpha1.GuestInfo {
	os := told.OS.PrettyName
	if os == "" {
		os = told.OS.ID
	}
	return &v1alpha1.GuestInfo{Hostname: told.Hostname, OS: os, Kernel: told.OS.Kernel, GuestAgentVersion: told.AgentVersion}
}
