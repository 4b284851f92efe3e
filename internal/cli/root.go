package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"
	"k8s.io/kubectl/pkg/cmd/options"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/util/templates"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// Exit codes of Docker's that are not the guest's.
const (
	exitOwn         = 125 // run and exec failed themselves
	exitInterrupted = 130 // by Ctrl-C
	exitKilled      = 137 // the guest was killed
)

// exitCode ends the program with a code and without a word: all is said, or it is the guest's own.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// fatal is what a command of kubectl's ends with, instead of ending the process.
type fatal struct {
	message string
	code    int
}

// Main runs one command line and returns its exit code.
func Main(ctx context.Context, args []string, streams genericiooptions.IOStreams) (code int) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	defer stop()
	log.SetLogger(klog.NewKlogr()) // controller-runtime's, else it complains on the terminal
	cmdutil.BehaviorOnFatal(func(message string, code int) { panic(fatal{message, code}) })
	isOwn := false
	defer func() {
		if end, is := recover().(fatal); is {
			if code = end.code; isOwn {
				code = exitOwn
			}
			if end.message != "" {
				fmt.Fprintln(streams.ErrOut, strings.TrimSuffix(end.message, "\n"))
			}
		}
	}()
	root := New(streams) //nolint:contextcheck // completion runs by its command's own context
	root.SetArgs(args)
	verb, err := root.ExecuteContextC(ctx)
	switch silent, is := errors.AsType[exitCode](err); {
	case is:
		return int(silent)
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	isOwn = verb.Name() == "run" || verb.Name() == "exec"
	cmdutil.CheckErr(explained(err))
	return 0
}

// explained puts into words what the API server says of a kind that it does not know.
func explained(err error) error {
	var status apierrors.APIStatus
	isUnknown := errors.As(err, &status) && apierrors.IsNotFound(err) && (status.Status().Details == nil || status.Status().Details.Name == "")
	if isUnknown || meta.IsNoMatchError(err) {
		return errors.New("this cluster has no VirtualMachines: install Berth's chart in it, or choose another by --context")
	}
	return err
}

// New makes the command and all its verbs.
func New(streams genericiooptions.IOStreams) *cobra.Command {
	root := &cobra.Command{
		Use: "kubectl-vm", Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl vm"},
		Short:         "Docker's verbs for KVM guests on Kubernetes",
		Long:          "Docker's verbs for KVM guests on Kubernetes.\n\nNAME is a VirtualMachine's, or the beginning of one that fits no other.",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	config := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams)
	config.AddFlags(root.PersistentFlags())
	versioned := cmdutil.NewMatchVersionFlags(config)
	versioned.AddFlags(root.PersistentFlags())
	verbosity := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(verbosity)
	root.PersistentFlags().AddGoFlag(verbosity.Lookup("v"))
	root.PersistentFlags().AddGoFlag(verbosity.Lookup("vmodule"))
	s := &session{IOStreams: streams, factory: cmdutil.NewFactory(versioned)}
	groups := templates.CommandGroups{
		{Message: "Run and look:", Commands: []*cobra.Command{s.run(), s.ps(), s.inspect(), s.why(), s.wait(), s.events()}},
		{Message: "State:", Commands: append(s.changes(),
			s.action("reset", "Reset guests at once, as their reset button would: nothing in them is asked", "reset"),
			s.action("nmi", "Send guests a non-maskable interrupt: their kernels may be set to panic or to dump then", "interrupted"),
			s.rm())},
		{Message: "Into the guest:", Commands: []*cobra.Command{s.logs(), s.attach(), s.exec(), s.cp(), s.ssh(), s.portForward(), s.top(), s.vnc(), s.screenshot()}},
		{Message: "Cluster:", Commands: []*cobra.Command{s.stats(), s.images(), s.system(), s.doctor(), s.version()}},
	}
	groups.Add(root)
	templates.ActsAsRootCommand(root, []string{"options"}, groups...)
	root.AddCommand(options.NewCmdOptions(streams.Out))
	return root
}
