package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/kubectl/pkg/cmd/attach"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
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
func (s *session) started(ctx context.Context, vm *v1alpha1.VirtualMachine, isSo untilSo) (*corev1.Pod, error) {
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

func (s *session) attach() *cobra.Command {
	var keys string
	cmd := s.guestVerb("attach NAME [--detach-keys KEYS]", "Join this terminal with the guest's console", cobra.ExactArgs(1), func(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, _ []string) error {
		if isTerminal(s.In) { // no log has the line that is not ended yet
			fmt.Fprintln(s.ErrOut, "If you don't see a command prompt, try pressing enter.")
		}
		detached, err := s.attachTo(ctx, pod, keys, s.Out)
		if err == nil && !detached {
			fmt.Fprintf(s.ErrOut, "\nThe console of %s ended.\n", vm.Name)
		}
		return err
	})
	cmd.Aliases = []string{"console"}
	addDetachKeys(cmd, &keys)
	return cmd
}

func addDetachKeys(cmd *cobra.Command, keys *string) {
	cmd.Flags().StringVar(keys, "detach-keys", "ctrl-]", "Keys that leave the console, as ctrl-p,ctrl-q; the guest runs on")
}

// attachTo joins this terminal with a guest's until the guest's ends, or the keys are typed. What the guest prints goes to out.
func (s *session) attachTo(ctx context.Context, pod *corev1.Pod, keys string, out io.Writer) (detached bool, err error) {
	if !isTerminal(s.In) {
		return false, errors.New("this is no terminal: kubectl vm logs -f shows a console without one")
	}
	r, options := s.remote(ctx, pod, true, true, s.IOStreams)
	defer r.end()
	o := &attach.AttachOptions{StreamOptions: options, Pod: pod, Config: s.config, DetachKeys: keys, Attach: r}
	o.AttachFunc = func(o *attach.AttachOptions, c *corev1.Container, raw bool, sizes remotecommand.TerminalSizeQueue) func() error {
		o.Out = out // kubectl has put the terminal there
		return attach.DefaultAttachFunc(o, c, raw, sizes)
	}
	fmt.Fprintf(s.ErrOut, "Attached to %s. Leave by %s.\r\n", pod.Name, keys)
	err = o.Run()
	return r.detached.Load(), err
}

// hasConsole: the guest runs, or has run.
func hasConsole(vm *v1alpha1.VirtualMachine) (bool, error) {
	return runs(vm) || vm.Status.Ended != nil || vm.Status.LastExit != nil, nil
}

// log asks for a guest's console.
func (s *session) log(pod *corev1.Pod, o corev1.PodLogOptions) *rest.Request {
	o.Container = berth.Container
	return s.clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &o)
}

// showConsole writes a console's log from its first byte to its last. One that breaks is read again from where it broke.
func (s *session) showConsole(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	pod, err := s.started(ctx, vm, hasConsole)
	for shown, isLast := int64(0), false; err == nil && !isLast; {
		now := &corev1.Pod{}
		if err := s.api.Get(ctx, client.ObjectKeyFromObject(pod), now); err != nil || now.UID != pod.UID {
			return client.IgnoreNotFound(err)
		}
		c, first := berth.ContainerStatus(now), berth.ContainerStatus(pod)
		isLast = c.State.Running == nil || c.ContainerID != first.ContainerID // it has ended: its log is whole
		var log io.ReadCloser
		if log, err = s.log(pod, corev1.PodLogOptions{Follow: true}).Stream(ctx); err == nil {
			var n int64
			if _, err := io.CopyN(io.Discard, log, shown); err == nil {
				n, _ = io.Copy(s.Out, log)
			}
			shown, err = shown+n, errors.Join(ctx.Err(), log.Close())
		}
	}
	return err
}

// joinConsole attaches this terminal to a guest's console, and shows what it has printed before.
func (s *session) joinConsole(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine) (detached bool, err error) {
	pod, err := s.started(ctx, vm, hasConsole)
	if err != nil {
		return false, err
	}
	j := &joiner{out: s.Out, whole: s.log(pod, corev1.PodLogOptions{}).DoRaw}
	reading, stop := context.WithCancel(ctx)
	joined := make(chan error, 1)
	go func() { joined <- j.join(reading) }()
	detached, err = s.attachTo(ctx, pod, o.detachKeys, j)
	stop()
	if failure := <-joined; failure != nil || detached || j.joined || ctx.Err() != nil {
		return detached, errors.Join(err, failure, ctx.Err())
	}
	_, err = j.try(ctx) // it ended before there was much to attach to: the log has all of it
	return false, err
}

// joiner shows a console once, from its first byte on, out of two readings of it: its log, which has every line from the
// start but not the line that has no end yet, and an attachment, which has every byte but those before it. Logs have \n where
// consoles have \r\n.
type joiner struct {
	out   io.Writer
	whole func(context.Context) ([]byte, error) // reads the log up to now

	mu     sync.Mutex
	shown  int    // bytes of the log
	live   []byte // of the attachment, until it is joined
	joined bool
}

// Write takes more of the attachment.
func (j *joiner) Write(more []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.joined {
		return j.out.Write(more)
	}
	j.live = append(j.live, more...)
	return len(more), nil
}

// join shows the log as it grows until the attachment fits to it, or ctx is done.
func (j *joiner) join(ctx context.Context) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if is, err := j.try(ctx); is || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause): // no watch tells of a log that is read whole
		}
	}
}

// try reads the log whole: it has all lines that the attachment had before, so its end is the beginning of the attachment, but
// for an attachment that is late. Of a line that has no end yet, such as a prompt, what came before the attachment is lost.
func (j *joiner) try(ctx context.Context) (bool, error) {
	j.mu.Lock()
	least := len(j.lines())
	j.mu.Unlock()
	whole, err := j.whole(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil || len(whole) < j.shown {
		return false, nil // what cannot be read now can be later
	}
	more := whole[j.shown:]
	j.shown = len(whole)
	if _, err := j.out.Write(bytes.ReplaceAll(more, []byte("\n"), []byte("\r\n"))); err != nil || len(j.live) == 0 {
		return false, err
	}
	lines := j.lines()
	for both := len(lines); both >= least; both-- {
		if bytes.HasSuffix(whole, lines[:both]) {
			rest := j.live
			for range bytes.Count(lines[:both], []byte("\n")) {
				_, rest, _ = bytes.Cut(rest, []byte("\n"))
			}
			j.joined, j.live = true, nil
			_, err := j.out.Write(rest)
			return true, err
		}
	}
	return false, nil
}

// lines are the attachment's complete lines, as a log has them.
func (j *joiner) lines() []byte {
	return bytes.ReplaceAll(j.live[:bytes.LastIndexByte(j.live, '\n')+1], []byte("\r\n"), []byte("\n"))
}
