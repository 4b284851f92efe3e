package virtualmachine

import (
	"cmp"
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/qga"
)

// How long what a guest agent told is good for. The first answer is asked for again soon, since a guest may have no
// name yet when its agent starts.
const (
	firstInfo = time.Minute
	lastInfo  = time.Hour
	// infoTimeout bounds one conversation, of a few questions.
	infoTimeout = 20 * time.Second
	// firstReconnectPause is for how long one that connects again soon is not asked. It doubles with each, up to
	// lastReconnectPause: a guest could have its status written twice with each, as often as QEMU tells of its port, which is
	// once a second.
	firstReconnectPause = time.Second
	lastReconnectPause  = time.Minute
)

// agentConnections are those of one guest's agent, of which each is asked at once if they are rare.
type agentConnections struct {
	ended bool      // one has ended since this agent of ours began
	asked time.Time // when the latest of them was first asked
	pause time.Duration
}

// next is when the next connection may be asked.
func (c *agentConnections) next() time.Time { return c.asked.Add(c.pause) }

// ask takes note that one is asked for the first time.
func (c *agentConnections) ask(now time.Time) {
	if quiet := now.Sub(c.asked); quiet >= 2*lastReconnectPause || quiet < 0 {
		c.pause = 0
	}
	c.asked, c.pause = now, min(max(2*c.pause, firstReconnectPause), lastReconnectPause)
}

// agentInfo is what one connection of a guest agent has told. It is forgotten with the connection.
type agentInfo struct {
	found    bool // when this agent of ours began
	asking   bool
	asked    bool // it was, or is being
	answered bool
	info     *v1alpha1.GuestInfo
	again    time.Time // when to ask again
	wait     time.Duration
}

// due: it is time to ask.
func (i *agentInfo) due(now time.Time) bool { return !i.asking && !now.Before(i.again) }

// observeGuestAgent fills in what the guest agent says of it. It is asked in the background, once for a connection and
// rarely after. Until the first answer of one that was there when we began the status stays as it is, so that a restart of
// ours is not to be seen there. Any other counts as connected when it has answered, so that both are written at once.
func (r *Reconciler) observeGuestAgent(g *target, o *observed) {
	known, ask := r.guests.guestAgent(g.uid, o.AgentChannelOpen, o.Domain == plan.DomainRunning, r.Now())
	if ask != nil {
		go r.askGuestAgent(g.uid, o.Facts.AgentPTY, ask)
	} else if o.AgentChannelOpen && !known.asked {
		o.askAgentIn = max(0, known.again.Sub(r.Now()))
	}
	switch {
	case !o.AgentChannelOpen:
	case known.answered:
		o.AgentConnected, o.Guest = true, known.info
	case g.VM != nil && known.found:
		o.AgentConnected = condition.Is(g.VM.Status.Conditions, v1alpha1.ConditionGuestAgentConnected, metav1.ConditionTrue)
		o.Guest = g.VM.Status.Guest
	}
}

// askGuestAgent asks a guest who it is, and has the guest looked at if the answer is new.
func (r *Reconciler) askGuestAgent(uid types.UID, pts int, into *agentInfo) {
	var told qga.Info
	err := r.converse(uid, pts, infoTimeout, "Guest agent does not answer", func(ctx context.Context, agent GuestAgent) (err error) {
		told, err = qga.Ask(ctx, agent)
		return err
	})
	if err != nil {
		r.Metrics.GuestAgentFailures.Inc()
	}
	if r.guests.answered(into, told, err, r.Now()) {
		r.Enqueue(uid)
	}
}

// startTools has a guest agent start the guest program. One that refuses is as good as any: there are other ways.
func (r *Reconciler) startTools(uid types.UID, pts int) {
	_ = r.converse(uid, pts, infoTimeout, "Guest agent does not start the guest program", func(ctx context.Context, agent GuestAgent) error {
		return qga.RunShell(ctx, agent, seed.StartTools)
	})
}

// powerDown asks a guest agent to power off, once at a time. One that is ending, since the guest does, refuses.
func (r *Reconciler) powerDown(uid types.UID, pts int) {
	if _, isAsked := r.poweringDown.LoadOrStore(uid, true); isAsked {
		return
	}
	defer r.poweringDown.Delete(uid)
	_ = r.converse(uid, pts, infoTimeout, "Guest agent does not power off", func(ctx context.Context, agent GuestAgent) error { return agent.PowerDown(ctx) })
}

// converse has one conversation with a guest agent, and logs if nothing comes of it within that time, which the guest decides.
func (r *Reconciler) converse(uid types.UID, pts int, within time.Duration, failed string, say func(context.Context, GuestAgent) error) error {
	ctx, cancel := context.WithTimeout(r.life, within)
	defer cancel()
	agent, err := r.openGuestAgent(ctx, uid, pts)
	if err == nil {
		err = say(ctx, agent)
		_ = agent.Close()
	}
	if err != nil {
		ctrl.Log.WithName("host").V(1).Info(failed, "guest", uid, "err", err.Error())
	}
	return err
}

// openGuestAgent begins a conversation with a guest agent.
func (r *Reconciler) openGuestAgent(ctx context.Context, uid types.UID, pts int) (GuestAgent, error) {
	found, err := r.Host.Processes.Find(string(uid))
	if err != nil {
		return nil, fmt.Errorf("looking for QEMU: %w", err)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("want one QEMU, found processes %v", pidsOf(found))
	}
	return r.Host.OpenGuestAgent(ctx, found[0].PID, pts)
}

// infoOf makes what a guest says of itself fit to be shown.
func infoOf(told qga.Info) *v1alpha1.GuestInfo {
	return &v1alpha1.GuestInfo{
		Hostname: told.Hostname, OS: cmp.Or(told.OS.PrettyName, told.OS.ID), Kernel: told.OS.Kernel, GuestAgentVersion: told.AgentVersion,
	}
}
