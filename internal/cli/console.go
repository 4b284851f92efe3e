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

// guestContainer is what kubelet says of the guest's container, nothing if it has not said anything yet.
func guestContainer(pod *corev1.Pod) (status corev1.ContainerStatus) {
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == berth.Container {
			status = c
		}
	}
	return status
}

// showConsole writes a console's log from its first byte to its last. One that breaks is read again from where it broke.
func (s *session) showConsole(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	pod, err := s.started(ctx, vm, hasConsole)
	for shown, isLast := int64(0), false; err == nil && !isLast; {
		now := &corev1.Pod{}
		if err := s.api.Get(ctx, client.ObjectKeyFromObject(pod), now); err != nil || now.UID != pod.UID {
			return client.IgnoreNotFound(err)
		}
		c, first := guestContainer(now), guestContainer(pod)
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
