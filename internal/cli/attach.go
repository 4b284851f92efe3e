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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/kubectl/pkg/cmd/attach"
	"k8s.io/kubectl/pkg/cmd/exec"
	"k8s.io/kubectl/pkg/util/interrupt"

	"github.com/berth-dev/berth/internal/berth"
)

const detachKeys = "ctrl-]"

func (s *session) attach() *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use:               "attach NAME [--detach-keys KEYS]",
		Aliases:           []string{"console"},
		Short:             "Join this terminal with the guest's console",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, pod, err := s.berth(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			c := s.console(pod, keys)
			if err := c.attach(cmd.Context(), s.Out); err != nil {
				return err
			}
			if !c.detached.Load() {
				fmt.Fprintf(s.ErrOut, "\nThe console of %s ended.\n", vm.Name)
			}
			return nil
		},
	}
	addDetachKeys(cmd, &keys)
	return cmd
}

func addDetachKeys(cmd *cobra.Command, keys *string) {
	cmd.Flags().StringVar(keys, "detach-keys", detachKeys, "Keys that leave the console, as ctrl-p,ctrl-q; the guest runs on")
}

// console is one attachment of this terminal to a guest's.
type console struct {
	*session
	pod      *corev1.Pod
	keys     string
	detached atomic.Bool // by its keys
}

func (s *session) console(pod *corev1.Pod, keys string) *console {
	return &console{session: s, pod: pod, keys: keys}
}

// attach joins the terminals until the guest's ends, or the keys are typed. What the guest prints goes to out.
func (c *console) attach(ctx context.Context, out io.Writer) error {
	if f, is := c.In.(*os.File); !is || !isTerminal(f) {
		return errors.New("this is no terminal: kubectl vm logs -f shows a console without one")
	}
	config, err := c.factory.ToRESTConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := attach.NewAttachOptions(c.IOStreams)
	o.Namespace, o.PodName, o.ContainerName, o.Pod = c.pod.Namespace, c.pod.Name, berth.Container, c.pod
	o.Stdin, o.TTY, o.Quiet = true, true, true
	o.Config, o.DetachKeys, o.GetPodTimeout = config, c.keys, time.Minute
	o.InterruptParent = interrupt.New(func(os.Signal) {}, cancel)
	o.Attach = attachment{ctx, out, &c.detached}
	fmt.Fprintf(c.ErrOut, "Attached to %s. Leave by %s.\r\n", c.pod.Name, c.keys)
	return o.Run()
}

// attachment is kubectl's, with an end, another place for what comes, and a note of the keys that leave.
type attachment struct {
	ctx      context.Context //nolint:containedctx // the interface of kubectl's has none
	out      io.Writer
	detached *atomic.Bool
}

func (a attachment) Attach(url *url.URL, config *rest.Config, stdin io.Reader, _, stderr io.Writer, tty bool, sizes remotecommand.TerminalSizeQueue) error {
	return (&exec.DefaultRemoteExecutor{}).ExecuteWithContext(a.ctx, url, config, notedEnd{stdin, a.detached}, a.out, stderr, tty, sizes)
}

// notedEnd notes the end of what is read.
type notedEnd struct {
	io.Reader
	ended *atomic.Bool
}

func (n notedEnd) Read(p []byte) (int, error) {
	read, err := n.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		n.ended.Store(true)
	}
	return read, err
}
