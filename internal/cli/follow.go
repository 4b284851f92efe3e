package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// follow stays with a guest to its end, or its user's, and ends with its exit code.
func (s *session) follow(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine, words []string, isCommand bool) (err error) {
	detached := false
	switch {
	case isCommand:
		err = s.runCommand(ctx, o, vm, words)
	case o.tty:
		detached, err = s.joinConsole(ctx, o, vm)
	default:
		err = s.showConsole(ctx, vm)
	}
	if detached {
		fmt.Fprintf(s.ErrOut, "\r\nDetached from %[1]s, which runs on: kubectl vm attach %[1]s\n", vm.Name)
		return nil
	}
	if err == nil && !isCommand {
		err = s.end(ctx, vm)
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second) // also when ctx has ended
	defer cancel()
	var failure error
	switch {
	case o.rm:
		failure = s.remove(after, vm, true)
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(s.ErrOut, "%[1]s/%[2]s stays: kubectl vm stop %[2]s, or rm -f\n", resourceName, vm.Name)
	case isCommand:
		failure = s.change(after, vm, &change{state: v1alpha1.StateStopped, grace: -1})
	}
	if failure != nil { // the exit code stays the guest's
		fmt.Fprintf(s.ErrOut, "error: %v\n", failure)
	}
	return err
}

// runCommand waits for the guest program and runs a command by it.
func (s *session) runCommand(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine, words []string) error {
	pod, err := s.started(ctx, vm, func(now *v1alpha1.VirtualMachine) (bool, error) {
		if now.Status.Ended != nil {
			return false, fmt.Errorf("%[1]s/%[2]s ended before it could be used (%[3]s): kubectl vm why %[2]s", resourceName, vm.Name, now.Status.Ended.Reason)
		}
		return runs(now) && tools(now) != "", nil
	})
	if err != nil {
		return err
	}
	if o.rm {
		letGo, err := s.holdLifeline(ctx, pod)
		defer letGo()
		if err != nil {
			return err
		}
	}
	return s.runIn(ctx, pod, inGuest(words...), o.stdin, o.tty, s.IOStreams)
}

// end waits for the guest's end, which nothing follows, and returns its exit code.
func (s *session) end(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	code := exitCode(exitKilled) // if it is deleted, or its pod was taken away and its node's agent has no word on it
	err := s.awaitVM(ctx, vm, func(now *v1alpha1.VirtualMachine) (bool, error) {
		switch {
		case now == nil:
			return true, nil
		case now.Status.Ended == nil && (now.Spec.RestartPolicy != v1alpha1.RestartAlways || now.Status.LastExit == nil):
			return false, stalls(now)
		case now.Status.LastExit != nil:
			code = exitCode(now.Status.LastExit.ExitCode)
		case now.Status.Ended.Phase == v1alpha1.PhaseSucceeded:
			code = 0
		}
		return true, nil
	})
	if err != nil || code == 0 {
		return err
	}
	return code
}

// started waits until a guest is as far as isSo wants it, and returns its pod.
func (s *session) started(ctx context.Context, vm *v1alpha1.VirtualMachine, isSo func(*v1alpha1.VirtualMachine) (bool, error)) (*corev1.Pod, error) {
	err := s.awaitVM(ctx, vm, func(now *v1alpha1.VirtualMachine) (bool, error) {
		if now == nil {
			return true, exitCode(exitKilled)
		}
		now.DeepCopyInto(vm)
		if is, err := isSo(now); is || err != nil {
			return is, err
		}
		return false, stalls(now)
	})
	if err != nil {
		return nil, err
	}
	_, pod, err := s.berth(ctx, vm.Name)
	return pod, err
}

// A guest that is thrown away ends though this program is killed. Kubernetes leaves commands behind then, but ends their input:
// one waits for that, and ends the guest. A startupProbe ends a guest in which nobody has started it.
const (
	lifelineTimeout = 15 * time.Minute
	lifelineHeld    = "/run/berth-lifeline" // in the guest

	lifeline = `trap '' HUP
true >` + lifelineHeld + ` && echo || exit
exec >/dev/null 2>&1
cat
` + guestsEnd
	// guestsEnd tells an exit code, that of a hang-up, where the host listens. Nothing of the guest is kept.
	guestsEnd = `for port in /dev/virtio-ports/dev.berth.exit.0 /dev/vport*p3; do [ -c "$port" ] && echo 129 >"$port" && break; done &
sleep 1
poweroff -f || busybox poweroff -f || echo o >/proc/sysrq-trigger`
)

// holdLifeline starts what ends the guest once it is let go, as by the end of this program.
func (s *session) holdLifeline(ctx context.Context, pod *corev1.Pod) (letGo func(), err error) {
	ctx, letGo = context.WithCancel(ctx)
	held, holder := io.Pipe()
	told, teller := io.Pipe()
	go func() {
		err := s.ask(ctx, pod, held, teller, "sh", "-c", lifeline)
		_ = teller.CloseWithError(fmt.Errorf("run --rm ends a guest by its sh, with a file in /run: %v", err)) //nolint:errorlint // an exit code of its own would be this program's, without a word
	}()
	go func() { // so that the shim does not take its place for another command
		for beats := time.NewTicker(30 * time.Second); ; <-beats.C {
			_, _ = holder.Write([]byte("\n"))
		}
	}()
	_, err = told.Read(make([]byte, 1))
	return letGo, errors.Join(ctx.Err(), err)
}
