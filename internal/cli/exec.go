package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/kubectl/pkg/cmd/attach"
	"k8s.io/kubectl/pkg/cmd/exec"
	"k8s.io/kubectl/pkg/util/interrupt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// shim is the program in a berth's container that reaches into its guest.
const shim = "/berth-shim"

// inGuest is the command line in the container that runs another in the guest.
func inGuest(argv ...string) []string { return append([]string{shim, "exec", "--"}, argv...) }

func (s *session) exec() *cobra.Command {
	var user, dir string
	var env []string
	var detach, stdin, tty bool
	cmd := s.guestVerb("exec NAME [-it] [-u USER] [-w DIR] [-e NAME=VALUE] [-d] -- COMMAND [ARG…]", "Run a command in the guest; the exit code is its own, or 125 to 127 as Docker's", cobra.MinimumNArgs(2), func(ctx context.Context, _ *v1alpha1.VirtualMachine, pod *corev1.Pod, argv []string) error {
		line := []string{shim, "exec"}
		if user != "" {
			line = append(line, "-u", user)
		}
		if dir != "" {
			line = append(line, "-w", dir)
		}
		for _, e := range env {
			line = append(line, "-e", e)
		}
		if detach {
			line = append(line, "-d")
		}
		return s.runIn(ctx, pod, append(append(line, "--"), argv...), stdin, tty, s.IOStreams)
	})
	cmd.Flags().StringVarP(&user, "user", "u", "", "The guest's user that the command runs as; root by default")
	cmd.Flags().StringVarP(&dir, "workdir", "w", "", "The directory in the guest that it runs in")
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "Set an environment variable, as NAME=VALUE")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "Give the command this program's input")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "Give it a terminal of the guest's own")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "Leave it once it is started")
	cmd.MarkFlagsMutuallyExclusive("detach", "stdin")
	cmd.MarkFlagsMutuallyExclusive("detach", "tty")
	return cmd
}

func (s *session) top() *cobra.Command {
	return s.guestVerb("top NAME [-- PS-OPTION…]", "List the processes in the guest, by its own ps (default: -ef)", cobra.MinimumNArgs(1), func(ctx context.Context, _ *v1alpha1.VirtualMachine, pod *corev1.Pod, argv []string) error {
		if len(argv) == 0 {
			argv = []string{"-ef"}
		}
		return s.runIn(ctx, pod, inGuest(append([]string{"ps"}, argv...)...), false, false, s.IOStreams)
	})
}

func (s *session) reset() *cobra.Command {
	return s.action("reset", "Reset guests at once, as their reset button would: nothing in them is asked", "reset")
}

func (s *session) nmi() *cobra.Command {
	return s.action("nmi", "Send guests a non-maskable interrupt: their kernels may be set to panic or to dump then", "interrupted")
}

// action is a verb that the shim has the node's agent carry out, and waits for.
func (s *session) action(verb, short, done string) *cobra.Command {
	return s.eachVM(verb, short, done, func(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
		_, pod, err := s.berth(ctx, vm.Name)
		if err != nil {
			return err
		}
		return s.runIn(ctx, pod, []string{shim, verb}, false, false, s.IOStreams)
	}, func(_, _ *v1alpha1.VirtualMachine) bool { return true })
}

// runIn runs a command line in a berth's container. An exit code other than 0 comes back as an exitCode.
func (s *session) runIn(ctx context.Context, pod *corev1.Pod, line []string, stdin, tty bool, streams genericiooptions.IOStreams) error {
	if tty && !stdin {
		return errors.New("a terminal has an input: give -i with -t")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := &exec.ExecOptions{
		StreamOptions: exec.StreamOptions{
			Namespace: pod.Namespace, PodName: pod.Name, ContainerName: berth.Container,
			Stdin: stdin, TTY: tty, Quiet: true, IOStreams: streams, InterruptParent: interrupt.New(func(os.Signal) {}, cancel),
		},
		Command: line, Executor: executor{ctx: ctx}, PodClient: s.clients.CoreV1(), Config: s.config,
	}
	err := o.Run()
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitCode(exit.ExitStatus())
	}
	return err
}

// executor is kubectl's, with an end.
type executor struct {
	*exec.DefaultRemoteExecutor
	ctx context.Context //nolint:containedctx // the interface of kubectl's has none
}

func (e executor) Execute(url *url.URL, config *rest.Config, stdin io.Reader, stdout, stderr io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return e.ExecuteWithContext(e.ctx, url, config, stdin, stdout, stderr, tty, sizes)
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := attach.NewAttachOptions(s.IOStreams)
	o.Namespace, o.PodName, o.ContainerName, o.Pod = pod.Namespace, pod.Name, berth.Container, pod
	o.Stdin, o.TTY, o.Quiet, o.Config, o.DetachKeys, o.GetPodTimeout = true, true, true, s.config, keys, time.Minute
	o.InterruptParent = interrupt.New(func(os.Signal) {}, cancel)
	typed := &attachment{ctx: ctx, out: out}
	o.Attach = typed
	fmt.Fprintf(s.ErrOut, "Attached to %s. Leave by %s.\r\n", pod.Name, keys)
	err = o.Run()
	return typed.ended.Load(), err
}

// attachment is kubectl's, with an end, another place for what comes, and a note of the keys that leave.
type attachment struct {
	ctx   context.Context //nolint:containedctx // the interface of kubectl's has none
	out   io.Writer
	in    io.Reader
	ended atomic.Bool
}

func (a *attachment) Attach(url *url.URL, config *rest.Config, stdin io.Reader, _, stderr io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	a.in = stdin
	return (&exec.DefaultRemoteExecutor{}).ExecuteWithContext(a.ctx, url, config, a, a.out, stderr, tty, sizes)
}

// Read notes the end of what is typed, which is the keys.
func (a *attachment) Read(p []byte) (int, error) {
	n, err := a.in.Read(p)
	if errors.Is(err, io.EOF) {
		a.ended.Store(true)
	}
	return n, err
}
