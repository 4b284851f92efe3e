package pulls

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
)

// Limits say how many pulls go on at once.
type Limits struct {
	PerNode, PerNamespace int
}

// Start begins to pull an image for a VM, once there is a place for it, or joins the pull of the same source, and does
// not wait. Its end wakes the VM.
func (p *Puller) Start(vm types.UID, namespace string, i machine.Image, keys Keys) {
	held, err := keys()
	if err == nil && i.Pull == corev1.PullNever {
		return // State says what is to be done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.join(vm, namespace, i, held, err)
	switch {
	case u.state.State == plan.ImagePulling:
	case err != nil:
		p.end(u, err)
	case fault.ClassOf(u.state.Err) != fault.User && p.Now().Before(u.state.Retry): // it rests, for whoever wants it
	default:
		u.keys = held
		u.state = plan.Image{State: plan.ImagePulling, Progress: "waiting for other pulls on the node", Err: u.state.Err}
		p.queue = append(p.queue, u)
	}
	p.dispatch() // also for who joins one that waits: his namespace may have a place
}

// Retain ends the pulls for a VM but those of these images, and forgets how they failed. A pull that another VM wants
// as well goes on.
func (p *Puller) Retain(vm types.UID, images []machine.Image) {
	p.mu.Lock()
	defer p.mu.Unlock()
	isOver := func(w want) bool { return w.vm == vm && !slices.Contains(images, w.image) }
	p.leaveAll(func(w want, _ *pull) bool { return isOver(w) })
	maps.DeleteFunc(p.asked, func(w want, _ bool) bool { return isOver(w) })
}

// join has a VM want the image from the source that its credentials make.
func (p *Puller) join(vm types.UID, namespace string, i machine.Image, keys image.Keychain, err error) *pull {
	s := p.sourceOf(vm, i, keys, err)
	p.leaveAll(func(w want, u *pull) bool { return w == (want{vm, i}) && u.source != s })
	u := p.pulls[s]
	if u == nil {
		u = &pull{source: s, image: i, wanted: map[types.UID]string{}}
		p.pulls[s] = u
	}
	u.wanted[vm] = namespace
	p.wants[want{vm, i}] = u
	return u
}

// leaveAll has VMs no longer want those images.
func (p *Puller) leaveAll(those func(want, *pull) bool) {
	for w, u := range p.wants {
		if those(w, u) {
			delete(p.wants, w)
			p.leave(w.vm, u)
		}
	}
}

// leave ends a pull with the last VM that wants it.
func (p *Puller) leave(vm types.UID, u *pull) {
	for w, other := range p.wants {
		if w.vm == vm && other == u { // another disk of the same image
			return
		}
	}
	left := u.wanted[vm]
	delete(u.wanted, vm)
	if len(u.wanted) == 0 {
		delete(p.pulls, u.source)
		p.queue = slices.DeleteFunc(p.queue, func(other *pull) bool { return other == u })
		if p.running[u] {
			u.cancel()
		}
		return
	}
	if u.namespace != left {
		return
	}
	for _, namespace := range u.wanted { // its place is one of theirs now
		u.namespace = namespace
		if namespace == left {
			return
		}
	}
}

// dispatch gives the places that are free to those that wait.
func (p *Puller) dispatch() {
	for len(p.running) < p.Limits.PerNode {
		u := p.next()
		if u == nil {
			return
		}
		p.queue = slices.DeleteFunc(p.queue, func(other *pull) bool { return other == u })
		var ctx context.Context
		ctx, u.cancel = context.WithCancel(p.background)
		p.running[u] = true
		u.state.Progress = "resolving the reference"
		go p.run(ctx, u)
	}
}

// next is the pull whose turn it is: that of the namespace with the fewest places, and of those the one that waits for
// longest. A namespace that fills the queue waits for itself alone.
func (p *Puller) next() (next *pull) {
	places := map[string]int{}
	for u := range p.running {
		places[u.namespace]++
	}
	for _, u := range p.queue {
		for _, namespace := range u.wanted {
			if n := places[namespace]; n < p.Limits.PerNamespace && (next == nil || n < places[next.namespace]) {
				u.namespace, next = namespace, u
			}
		}
	}
	return next
}
