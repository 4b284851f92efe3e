package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// change is one verb that changes a VirtualMachine's spec and waits until its guest follows.
type change struct {
	verb, done, short string
	// edit changes the spec; an error says why it cannot.
	edit func(*v1alpha1.VirtualMachine) error
	// after is done once the spec is changed.
	after func(context.Context, *v1alpha1.VirtualMachine) error
	// reached tells whether now is what was asked for of then.
	reached func(then, now *v1alpha1.VirtualMachine) bool
}

func (s *session) start() *cobra.Command {
	return s.changeCommand(&change{
		verb: "start", done: "started", short: "Start guests: state Running; one that has ended for good is run once more",
		edit: func(vm *v1alpha1.VirtualMachine) error {
			if vm.Spec.State == v1alpha1.StateRunning && vm.Status.Ended != nil {
				vm.Spec.RestartedAt = now()
			}
			vm.Spec.State = v1alpha1.StateRunning
			return nil
		},
		reached: func(_, now *v1alpha1.VirtualMachine) bool { return runs(now) },
	})
}

func (s *session) stop() *cobra.Command {
	var grace int64
	c := &change{
		verb: "stop", done: "stopped", short: "Stop guests: state Stopped; each is asked to power off, and ended after its grace period",
		edit:    func(vm *v1alpha1.VirtualMachine) error { vm.Spec.State = v1alpha1.StateStopped; return nil },
		after:   func(ctx context.Context, vm *v1alpha1.VirtualMachine) error { return s.deletePod(ctx, vm, grace) },
		reached: func(_, now *v1alpha1.VirtualMachine) bool { return stopped(now) },
	}
	cmd := s.changeCommand(c)
	cmd.Flags().Int64VarP(&grace, "time", "t", -1, "Seconds until the guest is ended, in place of its terminationGracePeriodSeconds")
	return cmd
}

func (s *session) kill() *cobra.Command {
	return s.changeCommand(&change{
		verb: "kill", done: "killed", short: "End guests at once: state Stopped, and the pod deleted with a grace of a second",
		edit:    func(vm *v1alpha1.VirtualMachine) error { vm.Spec.State = v1alpha1.StateStopped; return nil },
		after:   func(ctx context.Context, vm *v1alpha1.VirtualMachine) error { return s.deletePod(ctx, vm, 1) },
		reached: func(_, now *v1alpha1.VirtualMachine) bool { return stopped(now) },
	})
}

func (s *session) restart() *cobra.Command {
	return s.changeCommand(&change{
		verb: "restart", done: "restarted", short: "Restart guests, each gracefully and in a new pod: restartedAt",
		edit: func(vm *v1alpha1.VirtualMachine) error {
			vm.Spec.State, vm.Spec.RestartedAt = v1alpha1.StateRunning, now()
			return nil
		},
		reached: func(then, now *v1alpha1.VirtualMachine) bool {
			return runs(now) && now.Status.Berth != nil && (then.Status.Berth == nil || then.Status.Berth.PodUID != now.Status.Berth.PodUID)
		},
	})
}

func (s *session) pause() *cobra.Command {
	return s.changeCommand(&change{
		verb: "pause", done: "paused", short: "Halt guests, their memory kept: state Paused",
		edit: func(vm *v1alpha1.VirtualMachine) error {
			if vm.Spec.State == v1alpha1.StateStopped {
				return fmt.Errorf("%s/%s is stopped: kubectl vm start %s", resourceName, vm.Name, vm.Name)
			}
			vm.Spec.State = v1alpha1.StatePaused
			return nil
		},
		reached: func(_, now *v1alpha1.VirtualMachine) bool {
			c := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionRunning)
			return c != nil && c.Reason == string(v1alpha1.ReasonPaused)
		},
	})
}

func (s *session) unpause() *cobra.Command {
	return s.changeCommand(&change{
		verb: "unpause", done: "unpaused", short: "Let halted guests go on: state Running",
		edit: func(vm *v1alpha1.VirtualMachine) error {
			if vm.Spec.State != v1alpha1.StatePaused {
				return fmt.Errorf("%s/%s is not paused: its state is %s", resourceName, vm.Name, vm.Spec.State)
			}
			vm.Spec.State = v1alpha1.StateRunning
			return nil
		},
		reached: func(_, now *v1alpha1.VirtualMachine) bool { return runs(now) },
	})
}

// now is a restartedAt that no earlier one of the same second equals.
func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// stopped: its last berth is gone.
func stopped(vm *v1alpha1.VirtualMachine) bool {
	return vm.Status.ObservedGeneration >= vm.Generation && vm.Status.Berth == nil
}

func (s *session) changeCommand(c *change) *cobra.Command {
	var waits waitFlags
	flags := printFlags(c.done)
	cmd := &cobra.Command{
		Use:               c.verb + " NAME… [--wait=false] [--timeout DURATION]",
		Short:             c.short,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := s.vms(cmd.Context(), args)
			failures := []error{err}
			then := map[*v1alpha1.VirtualMachine]*v1alpha1.VirtualMachine{}
			for _, vm := range vms {
				before := vm.DeepCopy()
				if err := s.change(cmd.Context(), vm, c); err != nil {
					failures = append(failures, err)
					continue
				}
				then[vm] = before
			}
			for _, vm := range vms { // all are on their way by now
				before, isChanged := then[vm]
				if !isChanged {
					continue
				}
				err := waits.await(cmd.Context(), s, vm, c.done, func(now *v1alpha1.VirtualMachine) bool { return c.reached(before, now) })
				if err != nil {
					failures = append(failures, err)
					continue
				}
				failures = append(failures, s.print(flags, vm))
			}
			return errors.Join(failures...)
		},
	}
	waits.add(cmd)
	flags.AddFlags(cmd)
	return cmd
}

// change patches the spec, if there is anything to change in it.
func (s *session) change(ctx context.Context, vm *v1alpha1.VirtualMachine, c *change) error {
	before := vm.DeepCopy()
	if err := c.edit(vm); err != nil {
		return err
	}
	if err := s.api.Patch(ctx, vm, client.MergeFrom(before)); err != nil {
		return err
	}
	if c.after == nil {
		return nil
	}
	return c.after(ctx, vm)
}

// deletePod ends a guest in so many seconds; -1 leaves it to the operator. Whoever gives the shorter grace wins.
func (s *session) deletePod(ctx context.Context, vm *v1alpha1.VirtualMachine, grace int64) error {
	if grace < 0 || vm.Status.Berth == nil {
		return nil
	}
	uid := vm.Status.Berth.PodUID
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Status.Berth.PodName}}
	err := s.api.Delete(ctx, pod, client.GracePeriodSeconds(max(grace, 1)), client.Preconditions{UID: &uid})
	if apierrors.IsConflict(err) { // another pod by now
		return nil
	}
	return client.IgnoreNotFound(err)
}

// waitFlags are --wait and --timeout.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", true, "Wait until it is so")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "Wait for so long at most; 0 is for ever")
}

// await waits until a VirtualMachine, which becomes what it is then, has reached what done means.
func (w *waitFlags) await(ctx context.Context, s *session, vm *v1alpha1.VirtualMachine, done string, reached func(*v1alpha1.VirtualMachine) bool) error {
	if !w.wait {
		return nil
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.timeout)
		defer cancel()
	}
	err := s.awaitVM(ctx, vm, func(seen *v1alpha1.VirtualMachine) (bool, error) {
		if seen == nil {
			return false, fmt.Errorf("%s/%s was deleted before it was %s", resourceName, vm.Name, done)
		}
		seen.DeepCopyInto(vm)
		if reached(seen) {
			return true, nil
		}
		return false, stalls(seen)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s/%s is not %s after %s: %s: kubectl vm why %s", resourceName, vm.Name, done, w.timeout, clean(situation(vm)), vm.Name)
	}
	return err
}

// stalls is an error if a guest that is wanted waits for its user: nothing goes on without.
func stalls(vm *v1alpha1.VirtualMachine) error {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionStalled)
	if c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration < vm.Generation || vm.Spec.State == v1alpha1.StateStopped {
		return nil
	}
	return fmt.Errorf("%s/%s: %s: %s %s", resourceName, vm.Name, clean(c.Reason), clean(c.Message), v1alpha1.Reason(c.Reason).Next())
}
