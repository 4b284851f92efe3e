package host

import (
	"context"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
)

const (
	// factsTTL is how long the facts of libvirt are cached.
	factsTTL = 20 * time.Second
	// factsTimeout bounds the query: after libvirtd's installation it takes many seconds.
	factsTimeout = 3 * time.Minute
	// reconnectGrace is how long libvirtd may be disconnected, to restart or because the agent just started, before the host's status says so.
	reconnectGrace = 10 * time.Second
)

// factsCache has the facts of libvirt about its host.
type factsCache struct {
	mu       sync.Mutex
	querying bool
	known    bool // at least one query has ended
	facts    libvirtd.HostFacts
	err      error
	asked    time.Time
	// disconnected is why there is no connection, nil while there is one; since when it is so.
	disconnected error
	since        time.Time
}

// Facts are what libvirt reports of this host. If they are too old it is asked in the background, and the host is
// reconciled if the answer is new. They are not known while libvirtd may be about to come back, or has not answered yet.
func (r *Reconciler) Facts() (facts libvirtd.HostFacts, known bool, err error) {
	c, now := &r.facts, r.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.disconnected != nil {
		return c.facts, now.Sub(c.since) >= reconnectGrace, c.disconnected
	}
	if !c.querying && (!c.known || now.Sub(c.asked) >= factsTTL || c.err != nil) {
		c.querying = true
		go r.queryFacts()
	}
	return c.facts, c.known, c.err
}

// LibvirtConnectivity takes note that libvirtd is connected (nil), or why not.
func (r *Reconciler) LibvirtConnectivity(err error) {
	c := &r.facts
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnected, c.since, c.asked = err, r.Now(), time.Time{}
	if c.err != nil {
		c.known, c.err = false, nil
	}
}

func (r *Reconciler) queryFacts() {
	ctx, cancel := context.WithTimeout(r.background, factsTimeout)
	defer cancel()
	facts, err := r.Libvirt.HostFacts(ctx)
	c := &r.facts
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := !c.known || (c.err == nil) != (err == nil)
	c.querying, c.known, c.err, c.asked = false, true, err, r.Now()
	if err == nil {
		changed = changed || (c.facts.KVMUnavailable == nil) != (facts.KVMUnavailable == nil) || (c.facts.StateDirInaccessible == nil) != (facts.StateDirInaccessible == nil) || c.facts.QEMUVersion != facts.QEMUVersion
		c.facts = facts
	}
	if changed {
		r.Wake()
	}
}
