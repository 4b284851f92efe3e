package agent

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
	// patience is how long libvirtd may be away, to restart or because we just began, before the host says so.
	patience = 10 * time.Second
)

// hostFacts is what libvirt has told of its host. It is asked in the background.
type hostFacts struct {
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

// now is what is known, and has ask called if that is too old. It is not known while libvirtd may be about to come
// back, or has not answered yet.
func (f *hostFacts) now(now time.Time, ask func()) (facts libvirtd.HostFacts, known bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != nil {
		return f.facts, now.Sub(f.since) >= patience, f.away
	}
	if !f.asking && (!f.known || now.Sub(f.at) >= factsAge || f.err != nil) {
		f.asking = true
		go ask()
	}
	return f.facts, f.known, f.err
}

// heard takes note of libvirtd coming and going.
func (f *hostFacts) heard(away error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.since = away, now
	f.at = time.Time{}
	if f.err != nil {
		f.known, f.err = false, nil
	}
}

// told takes note of an answer, and tells whether it is the first one or one of another kind.
func (f *hostFacts) told(facts libvirtd.HostFacts, err error, now time.Time) (isNew bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	isNew = !f.known || (f.err == nil) != (err == nil)
	f.asking, f.known, f.err, f.at = false, true, err, now
	if err == nil {
		isNew = isNew || (f.facts.WhyNoKVM == nil) != (facts.WhyNoKVM == nil) || (f.facts.StateDirClosed == nil) != (facts.StateDirClosed == nil) || f.facts.QEMUVersion != facts.QEMUVersion
		f.facts = facts
	}
	return isNew
}

// askFacts asks libvirt, and has the host looked at if the answer is new.
func (a *Agent) askFacts() {
	ctx, cancel := context.WithTimeout(a.life, factsTimeout)
	defer cancel()
	facts, err := a.libvirt.HostFacts(ctx)
	if a.facts.told(facts, err, a.now()) {
		a.wakeHost()
	}
}
