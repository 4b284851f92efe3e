package virtualmachine

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/qga"
)

// resyncPeriod is how often a guest is looked at whose fingerprint stays the same.
const resyncPeriod = 5 * time.Minute

// guestCache is what is worth remembering of guests and can be lost.
type guestCache struct {
	mu    sync.Mutex
	byUID map[types.UID]*cached
}

// cached is what is remembered of one guest.
type cached struct {
	memory plan.Memory
	agent  *agentInfo // of the present connection of its guest agent; nil without one
	agents agentConnections
	exit   *plan.Exit // what its shim was told of its last end; nil while it lives
	// fingerprint is what could be seen from afar when it was last looked at and ran well, at that time; "" if it did not.
	fingerprint string
	at          time.Time
}

func newGuestCache() *guestCache {
	return &guestCache{byUID: map[types.UID]*cached{}}
}

// with does something to what is remembered of a guest.
func (c *guestCache) with(uid types.UID, do func(*cached)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byUID[uid] == nil {
		c.byUID[uid] = &cached{}
	}
	do(c.byUID[uid])
}

// forget drops all about a guest that is gone from this node.
func (c *guestCache) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byUID, uid)
}

// memory is what the last look at a guest left.
func (c *guestCache) memory(uid types.UID) (m plan.Memory) {
	c.with(uid, func(g *cached) { m = g.memory })
	return m
}

func (c *guestCache) remember(uid types.UID, m plan.Memory) {
	c.with(uid, func(g *cached) { g.memory = m })
}

// lastExit is what the guest's shim was told of its last end, nil if it lives again.
func (c *guestCache) lastExit(uid types.UID) (exit *plan.Exit) {
	c.with(uid, func(g *cached) { exit = g.exit })
	return exit
}

func (c *guestCache) rememberExit(uid types.UID, exit *plan.Exit) {
	c.with(uid, func(g *cached) { g.exit = exit })
}

func (c *guestCache) recordFingerprint(uid types.UID, fingerprint string, now time.Time) {
	c.with(uid, func(g *cached) { g.fingerprint, g.at = fingerprint, now })
}

// dropFingerprint has a guest looked at however it is from afar.
func (c *guestCache) dropFingerprint(uid types.UID) { c.recordFingerprint(uid, "", time.Time{}) }

// changed: a guest is not what it was when it was last looked at, or that was long ago, or its guest agent is to be
// asked again.
func (c *guestCache) changed(uid types.UID, fingerprint string, now time.Time) (changed bool) {
	c.with(uid, func(g *cached) {
		changed = g.fingerprint == "" || g.fingerprint != fingerprint || now.Sub(g.at) >= resyncPeriod || now.Before(g.at) ||
			g.agent != nil && g.agent.due(now)
	})
	return changed
}

// guestAgent is what the guest's agent has told since it connected, and, if it is time to ask it, where the answer goes.
// A guest whose CPUs stand still is not asked.
func (c *guestCache) guestAgent(uid types.UID, connected, runs bool, now time.Time) (known agentInfo, ask *agentInfo) {
	c.with(uid, func(g *cached) {
		if !connected {
			g.agent, g.agents.ended = nil, true
			return
		}
		if g.agent == nil {
			g.agent = &agentInfo{found: !g.agents.ended, wait: firstInfo, again: g.agents.next()}
		}
		if runs && g.agent.due(now) {
			if !g.agent.asked {
				g.agents.ask(now)
			}
			g.agent.asking, g.agent.asked, ask = true, true, g.agent
		}
		known = *g.agent
	})
	return known, ask
}

// answered takes note of what a guest agent told, and tells whether that is new. One that has answered once and then does
// not still is the same guest agent.
func (c *guestCache) answered(it *agentInfo, told qga.Info, err error, now time.Time) (isNew bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it.asking, it.again = false, now.Add(it.wait)
	it.wait = min(2*it.wait, lastInfo)
	if err != nil {
		return false
	}
	info := infoOf(told)
	isNew = !it.answered || *it.info != *info
	it.answered, it.info = true, info
	return isNew
}
