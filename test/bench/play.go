package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// play follows all VirtualMachines, and plays the agents of their nodes: as soon as a berth is named its guest runs.
type play struct {
	*cluster
	status *kube.StatusWriter
	queue  chan *v1alpha1.VirtualMachine

	mu    sync.Mutex
	seen  map[types.UID]standing
	total standing
	moved chan struct{} // closed when total changes
}

// standing counts what is so of one VirtualMachine, or of all.
type standing struct {
	ready   int // the guest is ready
	current int // the status answers to the spec as it is
}

func newPlay(c *cluster) *play {
	return &play{
		cluster: c, status: &kube.StatusWriter{Client: c, Manager: kube.AgentManager},
		queue: make(chan *v1alpha1.VirtualMachine, 1<<17), seen: map[types.UID]standing{}, moved: make(chan struct{}),
	}
}

// run plays until ctx ends.
func (p *play) run(ctx context.Context) {
	var group sync.WaitGroup
	for range connections {
		group.Go(func() {
			for vm := range p.queue {
				if _, err := p.status.Write(ctx, vm, guestStatus(vm), nil); err != nil && ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, "bench: reporting as agent:", err)
				}
			}
		})
	}
	for ctx.Err() == nil { // a watch ends after a while; the next one begins with all there are
		if err := p.watch(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "bench: watching:", err)
			_ = pause(ctx, time.Second)
		}
	}
	close(p.queue)
	group.Wait()
}

func (p *play) watch(ctx context.Context) error {
	w, err := p.Watch(ctx, &v1alpha1.VirtualMachineList{})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		vm, is := e.Object.(*v1alpha1.VirtualMachine)
		if !is {
			return fmt.Errorf("the API server says: %v", e.Object)
		}
		p.saw(vm)
		if vm.Status.Berth != nil && !told(vm) {
			p.queue <- vm
		}
	}
	return nil
}

func (p *play) saw(vm *v1alpha1.VirtualMachine) {
	var now standing
	if isReadyGuest(vm) {
		now.ready = 1
	}
	if vm.Status.ObservedGeneration == vm.Generation {
		now.current = 1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.seen[vm.UID]
	if now == before {
		return
	}
	p.seen[vm.UID] = now
	p.total.ready += now.ready - before.ready
	p.total.current += now.current - before.current
	close(p.moved)
	p.moved = make(chan struct{})
}

// await waits until all VirtualMachines together stand as wanted.
func (p *play) await(ctx context.Context, what string, is func(standing) bool) error {
	said := time.Now()
	for {
		p.mu.Lock()
		total, moved := p.total, p.moved
		p.mu.Unlock()
		if is(total) {
			return nil
		}
		if time.Since(said) > 10*time.Second {
			fmt.Fprintf(os.Stderr, "bench: waiting for %s: %d ready, %d current\n", what, total.ready, total.current)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-moved:
		case <-time.After(time.Second):
		}
	}
}

// told: the agent's part of the status answers to the spec as it is.
func told(vm *v1alpha1.VirtualMachine) bool {
	for _, c := range vm.Status.Conditions {
		if c.Type == v1alpha1.ConditionRunning {
			return c.ObservedGeneration == vm.Generation
		}
	}
	return false
}

// guestStatus is what an agent says of a guest that runs and has a guest agent.
func guestStatus(vm *v1alpha1.VirtualMachine) *v1alpha1.VirtualMachineStatus {
	return &v1alpha1.VirtualMachineStatus{
		Disks: []v1alpha1.DiskStatus{{
			Name: "root", Image: vm.Spec.Disks[0].Image, ImageDigest: digest(12), Size: resource.NewQuantity(20<<30, resource.BinarySI),
		}},
		Guest: &v1alpha1.GuestInfo{Hostname: vm.Name, OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-28-cloud-amd64", GuestAgentVersion: "7.2.0"},
		Conditions: stamped(vm.Status.Conditions, vm.Generation,
			condition.New(v1alpha1.ConditionGuestAgentConnected, true, v1alpha1.ReasonGuestAgentConnected, ""),
			condition.New(v1alpha1.ConditionDisksReady, true, v1alpha1.ReasonDisksReady, ""),
			condition.New(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted, "")),
	}
}

func stamped(had []metav1.Condition, generation int64, conditions ...metav1.Condition) []metav1.Condition {
	return condition.MergeTransitionTimes(conditions, had, generation, time.Now())
}
