package host

import (
	"context"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
)

const (
	// factsAge is how long what libvirt told of its host is good for.
	factsAge = 20 * time.Second
	// factsTimeout bounds the question: after libvirtd's installation it takes many seconds.
	factsTimeout = 3 * time.Minute
	// reconnectGrace is how long libvirtd may be away, to restart or because we just began, before the host says so.
	reconnectGrace = 10 * time.Second
)

// factsCache is what libvirt has told of its host.
type factsCache struct {
	mu     sync.Mutex
	asking bool
	known  bool // it was asked at least once
	facts  libvirtd.HostFacts
	err    error
	at     time.Time
	// away is why there is no connection, nil while there is one; since when it is so.
	away  error
	since time.Time
}

// Facts are what libvirt told of this host; if that is too old it is asked, and the host looked at if the answer is
// new. They are not known while libvirtd may be about to come back, or has not answered yet.
func (r *Reconciler) Facts() (facts libvirtd.HostFacts, known bool, err error) {
	c, now := &r.facts, r.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away != nil {
		return c.facts, now.Sub(c.since) >= reconnectGrace, c.away
	}
	if !c.asking && (!c.known || now.Sub(c.at) >= factsAge || c.err != nil) {
		c.asking = true
		go r.askFacts()
	}
	return c.facts, c.known, c.err
}

// LibvirtConnectivity takes note of libvirtd coming, with nil, and going.
func (r *Reconciler) LibvirtConnectivity(away error) {
	c := &r.facts
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away, c.since, c.at = away, r.Now(), time.Time{}
	if c.err != nil {
		c.known, c.err = false, nil
	}
}

func (r *Reconciler) askFacts() {
	ctx, cancel := context.WithTimeout(r.life, factsTimeout)
	defer cancel()
	facts, err := r.Libvirt.HostFacts(ctx)
	c := &r.facts
	c.mu.Lock()
	defer c.mu.Unlock()
	isNew := !c.known || (c.err == nil) != (err == nil)
	c.asking, c.known, c.err, c.at = false, true, err, r.Now()
	if err == nil {
		isNew = isNew || (c.facts.WhyNoKVM == nil) != (facts.WhyNoKVM == nil) || (c.facts.StateDirClosed == nil) != (facts.StateDirClosed == nil) || c.facts.QEMUVersion != facts.QEMUVersion
		c.facts = facts
	}
	if isNew {
		r.Wake()
	}
}
