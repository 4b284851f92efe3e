package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// moment is when something was over and how long it had taken, which is 0 of what is seen and not done.
type moment struct {
	name string
	end  time.Time
	took time.Duration
}

// life is an object's, from what can be seen of its start to what can be seen of its end.
type life struct {
	of         client.Object
	start, end []sight
	meanwhile  func() error // while it runs; may be nil

	created, deleted time.Time // when that was asked for
	seen             []moment
}

// sight is what to see of a kind's object.
type sight struct {
	list  client.ObjectList
	marks []mark
}

// mark is something that an event of a watch can tell.
type mark struct {
	name string
	is   func(watch.Event) bool
}

// What can be seen of starts and ends. A berth bears its VirtualMachine's name.
var (
	podStart = sight{&corev1.PodList{}, []mark{
		{"pod created", tells(func(*corev1.Pod) bool { return true })},
		{"pod bound", tells(func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })},
		{"container running", tells(func(p *corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Running != nil })
		})},
		{"pod Ready", tells(isReady)},
	}}
	vmStart = sight{&v1alpha1.VirtualMachineList{}, []mark{
		{"berth in VM's status", tells(func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.Berth != nil })},
		{"VM Running", tells(isRunning)},
		{"VM Ready", tells(isReadyGuest)},
	}}
	podEnd = sight{&corev1.PodList{}, []mark{{"pod's deletionTimestamp", isDeleting}, {"pod gone", isGone}}}
	vmEnd  = sight{&v1alpha1.VirtualMachineList{}, []mark{{"VM's deletionTimestamp", isDeleting}, {"VM gone", isGone}}}
)

func tells[O client.Object](is func(O) bool) func(watch.Event) bool {
	return func(e watch.Event) bool {
		o, ok := e.Object.(O)
		return ok && is(o)
	}
}

func isGone(e watch.Event) bool { return e.Type == watch.Deleted }

func isDeleting(e watch.Event) bool {
	return tells(func(o client.Object) bool { return o.GetDeletionTimestamp() != nil })(e)
}

// live creates an object and deletes it again, and notes what it sees of it.
func (b *bench) live(ctx context.Context, l *life) (err error) {
	if l.created, err = b.follow(ctx, l, l.start, func() error { return b.Create(ctx, l.of) }); err != nil {
		return err
	}
	if l.meanwhile != nil {
		if err := l.meanwhile(); err != nil {
			return err
		}
	}
	settle()
	l.deleted, err = b.follow(ctx, l, l.end, func() error { return b.Delete(ctx, l.of) })
	return err
}

// follow does something, notes when each sight was first to be seen, and returns when it began.
func (b *bench) follow(ctx context.Context, l *life, sights []sight, do func() error) (time.Time, error) {
	var group sync.WaitGroup
	seen, errs := make([][]moment, len(sights)), make([]error, len(sights))
	for i, s := range sights {
		w, err := b.Watch(ctx, s.list, &client.ListOptions{
			Namespace: b.ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", l.of.GetName()),
		})
		if err != nil {
			return time.Time{}, err
		}
		defer w.Stop()
		group.Go(func() {
			if seen[i], errs[i] = s.see(w.ResultChan()); errs[i] != nil {
				errs[i] = fmt.Errorf("watching %s: %w", l.of.GetName(), errs[i])
			}
		})
	}
	began := time.Now()
	if err := do(); err != nil {
		return began, err
	}
	group.Wait()
	l.seen = append(l.seen, slices.Concat(seen...)...)
	return began, errors.Join(errs...)
}

// see notes when each mark was first to be seen.
func (s sight) see(events <-chan watch.Event) (seen []moment, err error) {
	left := slices.Clone(s.marks)
	for e := range events {
		now := time.Now()
		left = slices.DeleteFunc(left, func(m mark) bool {
			if !m.is(e) {
				return false
			}
			seen = append(seen, moment{name: m.name, end: now})
			return true
		})
		if len(left) == 0 {
			return seen, nil
		}
	}
	return seen, fmt.Errorf("the watch ended before this was seen: %s", left[0].name)
}
