package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/kubectl/pkg/cmd/exec"
	"k8s.io/kubectl/pkg/util/interrupt"

	"github.com/berth-dev/berth/internal/berth"
)

// shim is the program in a berth's container that reaches into its guest.
const shim = "/berth-shim"

// command is what runs in a guest.
type command struct {
	argv       []string
	user, dir  string
	env        []string
	detach     bool
	stdin, tty bool
}

// line is the command line in the berth's container.
func (c *command) line() []string {
	line := []string{shim, "exec"}
	if c.user != "" {
		line = append(line, "-u", c.user)
	}
	if c.dir != "" {
		line = append(line, "-w", c.dir)
	}
	for _, e := range c.env {
		line = append(line, "-e", e)
	}
	if c.detach {
		line = append(line, "-d")
	}
	return append(append(line, "--"), c.argv...)
}

func (c *command) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.user, "user", "u", "", "The guest's user that the command runs as; root by default")
	cmd.Flags().StringVarP(&c.dir, "workdir", "w", "", "The directory in the guest that it runs in")
	cmd.Flags().StringArrayVarP(&c.env, "env", "e", nil, "Set an environment variable, as NAME=VALUE")
}

func (s *session) exec() *cobra.Command {
	c := &command{}
	cmd := &cobra.Command{
		Use:               "exec NAME [-it] [-u USER] [-w DIR] [-e NAME=VALUE] [-d] -- COMMAND [ARG…]",
		Short:             "Run a command in the guest; the exit code is its own, or 125 to 127 as Docker's",
		Example:           "  kubectl vm exec web -- uname -r\n  kubectl vm exec -it web -- bash\n  kubectl vm exec -u www-data -w /srv web -- ls -l",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.detach && (c.stdin || c.tty) {
				return errors.New("a detached command has no terminal and no input: leave -d out, or -i and -t")
			}
			_, pod, err := s.berth(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			c.argv = args[1:]
			return s.runIn(cmd.Context(), pod, c.line(), c.stdin, c.tty, s.IOStreams)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after NAME would be the command's
	c.addFlags(cmd)
	cmd.Flags().BoolVarP(&c.stdin, "stdin", "i", false, "Give the command this program's input")
	cmd.Flags().BoolVarP(&c.tty, "tty", "t", false, "Give it a terminal of the guest's own")
	cmd.Flags().BoolVarP(&c.detach, "detach", "d", false, "Leave it once it is started")
	return cmd
}

func (s *session) top() *cobra.Command {
	return &cobra.Command{
		Use:               "top NAME [-- PS-OPTION…]",
		Short:             "List the processes in the guest, by its own ps (default: -ef)",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := &command{argv: []string{"ps", "-ef"}}
			if len(args) > 1 {
				c.argv = append([]string{"ps"}, args[1:]...)
			}
			_, pod, err := s.berth(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.runIn(cmd.Context(), pod, c.line(), false, false, s.IOStreams)
		},
	}
}

func (s *session) reset() *cobra.Command {
	return s.action("reset", "Reset guests at once, as their reset button would: nothing in them is asked", "reset")
}

func (s *session) nmi() *cobra.Command {
	return s.action("nmi", "Send guests a non-maskable interrupt: their kernels may be set to panic or to dump then", "interrupted")
}

// action is a verb that the shim carries out.
func (s *session) action(verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME…", Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failures []error
			for _, name := range args {
				vm, pod, err := s.berth(cmd.Context(), name)
				if err == nil {
					err = s.runIn(cmd.Context(), pod, []string{shim, verb}, false, false, s.IOStreams)
				}
				if err != nil {
					failures = append(failures, err)
					continue
				}
				fmt.Fprintf(s.Out, "%s/%s %s\n", resourceName, vm.Name, done)
			}
			return errors.Join(failures...)
		},
	}
}

// runIn runs a command line in a berth's container. An exit code other than 0 comes back as an exitCode.
func (s *session) runIn(ctx context.Context, pod *corev1.Pod, line []string, stdin, tty bool, streams genericiooptions.IOStreams) error {
	config, err := s.factory.ToRESTConfig()
	if err != nil {
		return err
	}
	clients, err := s.factory.KubernetesClientSet()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := &exec.ExecOptions{
		StreamOptions: exec.StreamOptions{
			Namespace: pod.Namespace, PodName: pod.Name, ContainerName: berth.Container,
			Stdin: stdin, TTY: tty && stdin, Quiet: true, IOStreams: streams, InterruptParent: interrupt.New(func(os.Signal) {}, cancel),
		},
		Command: line, Executor: executor{ctx}, PodClient: clients.CoreV1(), Config: config,
	}
	if tty && !stdin {
		return errors.New("a terminal has an input: give -i with -t")
	}
	err = o.Run()
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitCode(exit.ExitStatus())
	}
	return err
}

// executor is kubectl's, with an end.
type executor struct {
	ctx context.Context //nolint:containedctx // the interface of kubectl's has none
}

func (e executor) Execute(url *url.URL, config *rest.Config, stdin io.Reader, stdout, stderr io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return e.ExecuteWithContext(e.ctx, url, config, stdin, stdout, stderr, tty, sizes)
}

func (e executor) ExecuteWithContext(ctx context.Context, url *url.URL, config *rest.Config, stdin io.Reader, stdout, stderr io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return (&exec.DefaultRemoteExecutor{}).ExecuteWithContext(ctx, url, config, stdin, stdout, stderr, tty, sizes)
}
