package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// change is a verb that changes a VirtualMachine's spec and waits until its guest follows.
type change struct {
	verb, done, short string
	state             v1alpha1.State // that it sets
	grace             int64          // in seconds, with which it deletes the pod; -1 leaves that to the operator
	reached           func(then, now *v1alpha1.VirtualMachine) bool
}

func (s *session) changes() (all []*cobra.Command) {
	runsAgain := func(_, now *v1alpha1.VirtualMachine) bool { return runs(now) }
	runsAnew := func(then, now *v1alpha1.VirtualMachine) bool {
		return runs(now) && now.Status.Berth != nil && (then.Status.Berth == nil || then.Status.Berth.PodUID != now.Status.Berth.PodUID)
	}
	isPaused := func(_, now *v1alpha1.VirtualMachine) bool {
		c := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionRunning)
		return c != nil && c.Reason == string(v1alpha1.ReasonPaused)
	}
	isGone := func(_, now *v1alpha1.VirtualMachine) bool {
		return now.Status.ObservedGeneration >= now.Generation && now.Status.Berth == nil
	}
	for _, c := range []*change{
		{"start", "started", "Start guests: state Running; one that has ended for good is run once more", v1alpha1.StateRunning, -1, runsAgain},
		{"stop", "stopped", "Stop guests: state Stopped; each is asked to power off, and ended after its grace period", v1alpha1.StateStopped, -1, isGone},
		{"restart", "restarted", "Restart guests, each gracefully and in a new pod: restartedAt", v1alpha1.StateRunning, -1, runsAnew},
		{"pause", "paused", "Halt guests, their memory kept: state Paused", v1alpha1.StatePaused, -1, isPaused},
		{"unpause", "unpaused", "Let halted guests go on: state Running", v1alpha1.StateRunning, -1, runsAgain},
		{"kill", "killed", "End guests at once: state Stopped, and the pod deleted with a grace of a second", v1alpha1.StateStopped, 1, isGone},
	} {
		cmd := s.eachVM(c.verb, c.short, c.done, func(ctx context.Context, vm *v1alpha1.VirtualMachine) error { return s.change(ctx, vm, c) }, c.reached)
		if c.verb == "stop" {
			cmd.Flags().Int64VarP(&c.grace, "time", "t", -1, "Seconds until the guest is ended, in place of its terminationGracePeriodSeconds")
		}
		all = append(all, cmd)
	}
	return all
}

func (s *session) rm() *cobra.Command {
	var force bool
	cmd := s.eachVM("rm", "Delete VirtualMachines and their disks; with -f also those whose guest runs, which is killed", "deleted", func(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
		if !force && present(vm) {
			return fmt.Errorf("%s/%s has a guest: stop it first, or kill and delete it by rm -f", resourceName, vm.Name)
		}
		return s.remove(ctx, vm, force)
	}, nil)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Kill the guest")
	return cmd
}

// remove deletes just this VirtualMachine, and its pod at once if asked to. That it is gone already is no error.
func (s *session) remove(ctx context.Context, vm *v1alpha1.VirtualMachine, kill bool) error {
	err := client.IgnoreNotFound(s.api.Delete(ctx, vm, client.Preconditions{UID: &vm.UID}))
	if err != nil || !kill {
		return err
	}
	return s.deletePod(ctx, vm, 1)
}

// change patches the spec.
func (s *session) change(ctx context.Context, vm *v1alpha1.VirtualMachine, c *change) error {
	before := vm.DeepCopy()
	switch {
	case c.verb == "pause" && vm.Spec.State == v1alpha1.StateStopped:
		return fmt.Errorf("%[1]s/%[2]s is stopped: kubectl vm start %[2]s", resourceName, vm.Name)
	case c.verb == "unpause" && vm.Spec.State != v1alpha1.StatePaused:
		return fmt.Errorf("%s/%s is not paused: its state is %s", resourceName, vm.Name, vm.Spec.State)
	case c.verb == "restart" || c.verb == "start" && vm.Status.Ended != nil:
		vm.Spec.RestartedAt = time.Now().UTC().Format(time.RFC3339Nano)
	}
	vm.Spec.State = c.state
	if err := s.api.Patch(ctx, vm, client.MergeFrom(before)); err != nil || c.grace < 0 {
		return err
	}
	return s.deletePod(ctx, vm, c.grace)
}

// deletePod ends a guest in so many seconds. Whoever gives the shorter grace wins.
func (s *session) deletePod(ctx context.Context, vm *v1alpha1.VirtualMachine, grace int64) error {
	if vm.Status.Berth == nil {
		return nil
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Status.Berth.PodName}}
	err := s.api.Delete(ctx, pod, client.GracePeriodSeconds(max(grace, 1)), client.Preconditions{UID: &vm.Status.Berth.PodUID})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // another pod by now, or none
		return nil
	}
	return err
}

// eachVM makes a verb that does something to each VirtualMachine, and waits until all have reached what it means; without
// reached, until they are gone.
func (s *session) eachVM(verb, short, done string, do func(context.Context, *v1alpha1.VirtualMachine) error, reached func(then, now *v1alpha1.VirtualMachine) bool) *cobra.Command {
	var wait bool
	var timeout time.Duration
	flags := printFlags(done)
	cmd := s.verb(verb+" NAME… [--wait=false] [--timeout DURATION]", short, cobra.MinimumNArgs(1), 0, func(ctx context.Context, args []string) error {
		vms, err := s.vms(ctx, args)
		failures, were := []error{err}, map[*v1alpha1.VirtualMachine]*v1alpha1.VirtualMachine{}
		vms = slices.DeleteFunc(vms, func(vm *v1alpha1.VirtualMachine) bool {
			were[vm] = vm.DeepCopy()
			err := do(ctx, vm)
			failures = append(failures, err)
			return err != nil
		})
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		for _, vm := range vms { // all are on their way by now
			var err error
			if wait {
				err = s.awaitVM(ctx, vm, func(now *v1alpha1.VirtualMachine) (bool, error) {
					switch {
					case reached == nil:
						return now == nil, nil
					case now == nil:
						return false, fmt.Errorf("%s/%s was deleted before it was %s", resourceName, vm.Name, done)
					}
					if now.DeepCopyInto(vm); reached(were[vm], now) {
						return true, nil
					}
					return false, stalls(now)
				})
			}
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%[1]s/%[2]s is not %[3]s after %[4]s: %[5]s: kubectl vm why %[2]s", resourceName, vm.Name, done, timeout, clean(situation(vm)))
			}
			if err == nil {
				err = s.print(flags, vm)
			}
			failures = append(failures, err)
		}
		return errors.Join(failures...)
	})
	cmd.Flags().BoolVar(&wait, "wait", true, "Wait until it is so")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "Wait for so long at most; 0 is for ever")
	flags.AddFlags(cmd)
	return cmd
}

// stalls is an error if a guest that is wanted waits for its user: nothing goes on without.
func stalls(vm *v1alpha1.VirtualMachine) error {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionStalled)
	if c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration < vm.Generation || vm.Spec.State == v1alpha1.StateStopped {
		return nil
	}
	return fmt.Errorf("%s/%s: %s: %s %s", resourceName, vm.Name, clean(c.Reason), clean(c.Message), v1alpha1.Reason(c.Reason).Next())
}

// progress tells on a terminal what a command waits for, once it has waited for a second, in one line that goes again. What is
// written to it is counted.
type progress struct {
	out    io.Writer
	since  time.Time
	copied int64
}

func (s *session) progress() *progress {
	p := &progress{out: io.Discard, since: time.Now()}
	if isTerminal(s.ErrOut) {
		p.out = s.ErrOut
	}
	return p
}

func isTerminal(stream any) bool {
	f, is := stream.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

func (p *progress) say(text string) {
	if time.Since(p.since) >= time.Second {
		line := []rune(clean(text))
		fmt.Fprintf(p.out, "\r\x1b[K%s", string(line[:min(len(line), 120)]))
	}
}

func (p *progress) Write(more []byte) (int, error) {
	p.copied += int64(len(more))
	p.say("copied " + bytesOf(p.copied))
	return len(more), nil
}

func (p *progress) end() {
	if time.Since(p.since) >= time.Second {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// untilSo tells of a VirtualMachine as it is now whether that is what was waited for. It is asked of nil once it is gone, which
// ends the waiting.
type untilSo func(now *v1alpha1.VirtualMachine) (bool, error)

// awaitVM waits for what isSo says. It reads the VirtualMachine again whenever a watch wakes it, and each second, lest something
// on the way holds the watch back.
func (s *session) awaitVM(ctx context.Context, vm *v1alpha1.VirtualMachine, isSo untilSo) error {
	p := s.progress()
	defer p.end()
	for { // the API server ends a watch now and then
		is := client.MatchingFields{"metadata.name": vm.Name}
		w, err := s.api.Watch(ctx, &v1alpha1.VirtualMachineList{}, client.InNamespace(vm.Namespace), is)
		if err != nil {
			return err
		}
		defer w.Stop()
		for isOpen := true; isOpen; {
			now := &v1alpha1.VirtualMachine{}
			err := s.api.Get(ctx, client.ObjectKeyFromObject(vm), now)
			if apierrors.IsNotFound(err) || err == nil && now.UID != vm.UID {
				_, err = isSo(nil)
				return err
			}
			if err != nil {
				return err
			}
			if is, err := isSo(now); is || err != nil {
				return err
			}
			p.say("waiting for " + now.Name + ": " + situation(now))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			case _, isOpen = <-w.ResultChan():
			}
		}
	}
}

// situation is one line on how a VirtualMachine is.
func situation(vm *v1alpha1.VirtualMachine) string {
	if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status != metav1.ConditionTrue {
		return fmt.Sprintf("%s: %s: %s", vm.Status.Phase, c.Reason, c.Message)
	}
	return string(vm.Status.Phase)
}

// runs tells whether the guest of the spec as it is runs, as far as the agent has reported.
func runs(vm *v1alpha1.VirtualMachine) bool {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionRunning)
	return c != nil && c.Status == metav1.ConditionTrue && vm.Status.ObservedGeneration >= vm.Generation && c.ObservedGeneration >= vm.Generation
}
