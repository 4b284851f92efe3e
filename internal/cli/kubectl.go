package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/kubectl/pkg/cmd/events"
	"k8s.io/kubectl/pkg/cmd/exec"
	"k8s.io/kubectl/pkg/cmd/logs"
	"k8s.io/kubectl/pkg/cmd/portforward"
	"k8s.io/kubectl/pkg/cmd/wait"
	"k8s.io/kubectl/pkg/util/interrupt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// borrowed makes a command of kubectl's ours: its flags and what it does stay, its arguments are turned from those of a
// VirtualMachine into its own.
func (s *session) borrowed(cmd *cobra.Command, use, short string, names int, turn func(ctx context.Context, args []string) ([]string, error)) *cobra.Command {
	run := cmd.Run
	ours := s.verb(use, short, nil, names, func(ctx context.Context, args []string) error {
		turned, err := turn(ctx, args)
		if err != nil {
			return err
		}
		signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // are kubectl's own now
		run(cmd, turned)
		return nil
	})
	cmd.Use, cmd.Short, cmd.Long, cmd.Example, cmd.Run, cmd.RunE, cmd.ValidArgsFunction = use, short, short+".", "", nil, ours.RunE, ours.ValidArgsFunction
	return cmd
}

// podOfFirst puts a pod's name in place of a VirtualMachine's in the first argument.
func (s *session) podOfFirst(ctx context.Context, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	_, pod, err := s.berth(ctx, args[0])
	if err != nil {
		return nil, err
	}
	return append([]string{"pod/" + pod.Name}, args[1:]...), nil
}

func (s *session) logs() *cobra.Command {
	return s.borrowed(logs.NewCmdLogs(s.factory, s.IOStreams), "logs NAME [-f] [-p]", "Show what the guest's console has printed", 1, s.podOfFirst)
}

func (s *session) portForward() *cobra.Command {
	return s.borrowed(portforward.NewCmdPortForward(s.factory, s.IOStreams), "port-forward NAME [LOCAL_PORT:]REMOTE_PORT…", "Forward ports of this machine to the guest", 1, s.podOfFirst)
}

// mayBeAbsent finds what wait can wait for of an object that is not there.
var mayBeAbsent = regexp.MustCompile(`(?i)\b(delete|create)\b`)

func (s *session) wait() *cobra.Command {
	cmd := wait.NewCmdWait(s.factory, s.IOStreams)
	return s.borrowed(cmd, "wait NAME… [--for condition=Ready|delete|jsonpath=…] [--timeout DURATION]", "Wait for a condition of VirtualMachines, by default Ready", 0, func(ctx context.Context, args []string) (turned []string, err error) {
		if !cmd.Flags().Changed("for") {
			err = cmd.Flags().Set("for", "condition="+v1alpha1.ConditionReady)
		}
		for _, name := range args {
			vm, failure := s.vm(ctx, name)
			if failure == nil {
				name = vm.Name
			} else if !mayBeAbsent.MatchString(cmd.Flags().Lookup("for").Value.String()) {
				return nil, failure
			}
			turned = append(turned, resourceName+"/"+name[strings.Index(name, "/")+1:])
		}
		return turned, err
	})
}

func (s *session) events() *cobra.Command {
	cmd := events.NewCmdEvents(s.factory, s.IOStreams)
	return s.borrowed(cmd, "events [NAME] [--watch] [--types Warning]", "List the Events of a VirtualMachine, or of the namespace", 1, func(ctx context.Context, args []string) ([]string, error) {
		if len(args) == 0 {
			return nil, nil
		} else if len(args) > 1 {
			return nil, fmt.Errorf("events takes one name, not %d", len(args))
		}
		vm, err := s.vm(ctx, args[0])
		if err != nil {
			return nil, err
		}
		return nil, cmd.Flags().Set("for", resourceName+"/"+vm.Name)
	})
}

// shim is the program in a berth's container that reaches into its guest.
const shim = "/berth-shim"

// inGuest is the command line in the container that runs another in the guest.
func inGuest(argv ...string) []string { return append([]string{shim, "exec", "--"}, argv...) }

func (s *session) exec() *cobra.Command {
	var user, dir string
	var env []string
	var detach, stdin, tty bool
	cmd := s.guestVerb("exec NAME [-it] [-u USER] [-w DIR] [-e NAME=VALUE] [-d] -- COMMAND [ARG…]", "Run a command in the guest; the exit code is its own, or 125 to 127 as Docker's", cobra.MinimumNArgs(2), func(ctx context.Context, _ *v1alpha1.VirtualMachine, pod *corev1.Pod, argv []string) error {
		line := []string{shim, "exec", "-u", user, "-w", dir} // empty, they are root and its home
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
	r, options := s.remote(ctx, pod, stdin, tty, streams)
	defer r.end()
	o := &exec.ExecOptions{StreamOptions: options, Command: line, Executor: r, PodClient: s.clients.CoreV1(), Config: s.config}
	err := o.Run()
	if exit, is := errors.AsType[utilexec.ExitError](err); is && exit.Exited() {
		return exitCode(exit.ExitStatus())
	}
	return err
}

// ask runs a command in the guest whose errors are this program's.
func (s *session) ask(ctx context.Context, pod *corev1.Pod, in io.Reader, out io.Writer, argv ...string) error {
	said := &bytes.Buffer{}
	err := s.runIn(ctx, pod, inGuest(argv...), in != nil, false, genericiooptions.IOStreams{In: in, Out: out, ErrOut: said})
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		return errors.New("in the guest: " + clean(text))
	}
	return err
}

// remote is kubectl's way to a program in a container, with an end, and a note of the keys that leave a console.
type remote struct {
	exec.DefaultRemoteExecutor
	ctx      context.Context //nolint:containedctx // the interfaces of kubectl's have none
	end      context.CancelFunc
	detached atomic.Bool
}

func (s *session) remote(ctx context.Context, pod *corev1.Pod, stdin, tty bool, streams genericiooptions.IOStreams) (*remote, exec.StreamOptions) {
	r := &remote{}
	r.ctx, r.end = context.WithCancel(ctx)
	return r, exec.StreamOptions{
		Namespace: pod.Namespace, PodName: pod.Name, ContainerName: berth.Container,
		Stdin: stdin, TTY: tty, Quiet: true, IOStreams: streams, InterruptParent: interrupt.New(func(os.Signal) {}, r.end),
	}
}

// Execute runs a command.
func (r *remote) Execute(url *url.URL, config *rest.Config, in io.Reader, out, errOut io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return r.ExecuteWithContext(r.ctx, url, config, in, out, errOut, tty, sizes)
}

// Attach joins a console. What is typed ends by the keys alone.
func (r *remote) Attach(url *url.URL, config *rest.Config, in io.Reader, out, errOut io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return r.Execute(url, config, io.MultiReader(in, whenRead(func() { r.detached.Store(true) })), out, errOut, tty, sizes)
}

// whenRead is the end of a stream that is told once it is reached.
type whenRead func()

func (w whenRead) Read([]byte) (int, error) {
	w()
	return 0, io.EOF
}
