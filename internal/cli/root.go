package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/kubectl/pkg/cmd/options"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/util/completion"
	"k8s.io/kubectl/pkg/util/templates"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
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

// resourceName is what kubectl calls a VirtualMachine.
const resourceName = "virtualmachine.berth.dev"

// session is one run of the program: its terminal, its cluster and its namespace.
type session struct {
	genericiooptions.IOStreams
	factory cmdutil.Factory
	// after connect:
	api       client.WithWatch
	config    *rest.Config // kubectl's, for streams
	clients   *kubernetes.Clientset
	namespace string
}

// connect makes the clients.
func (s *session) connect() (err error) {
	if s.config, err = s.factory.ToRESTConfig(); err != nil {
		return err
	}
	if s.namespace, _, err = s.factory.ToRawKubeConfigLoader().Namespace(); err != nil {
		return err
	}
	if s.clients, err = s.factory.KubernetesClientSet(); err != nil {
		return err
	}
	mapper, err := s.factory.ToRESTMapper() // from kubectl's cache
	if err != nil {
		return err
	}
	config := rest.CopyConfig(s.config)
	config.QPS, config.Burst = 50, 300 // several names at once
	scheme := kube.Scheme()
	if err := metricsv1beta1.AddToScheme(scheme); err != nil {
		return err
	}
	s.api, err = client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper})
	return err
}

// verb makes a command that takes so many names of VirtualMachines to complete: 0 is any number, -1 none.
func (s *session) verb(use, short string, args cobra.PositionalArgs, names int, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: s.complete(names), RunE: func(cmd *cobra.Command, args []string) error {
		if err := s.connect(); err != nil {
			return err
		}
		return run(cmd.Context(), args)
	}}
}

// guestVerb makes a verb about the guest of a VirtualMachine that the first argument names; rest are the others.
func (s *session) guestVerb(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, rest []string) error) *cobra.Command {
	return s.verb(use, short, args, 1, func(ctx context.Context, args []string) error {
		vm, pod, err := s.berth(ctx, args[0])
		if err != nil {
			return err
		}
		return run(ctx, vm, pod, args[1:])
	})
}

func (s *session) complete(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, begun string) (names []string, _ cobra.ShellCompDirective) {
		if most == 0 || len(args) < most {
			names = completion.CompGetResource(s.factory, resourceName, begun)
		}
		return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// vm finds a VirtualMachine by its name, also as TYPE/NAME, or by the beginning of one that fits no other.
func (s *session) vm(ctx context.Context, word string) (*v1alpha1.VirtualMachine, error) {
	kind, name, isTyped := strings.Cut(word, "/")
	if !isTyped {
		kind, name = "vm", word
	}
	if !slices.Contains([]string{"vm", "bvm", "virtualmachine", "virtualmachines", resourceName, "virtualmachines.berth.dev"}, kind) || name == "" {
		return nil, fmt.Errorf("%s is no VirtualMachine's name: write NAME or vm/NAME", word)
	}
	vm := &v1alpha1.VirtualMachine{}
	err := s.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, vm)
	if !apierrors.IsNotFound(err) || explained(err) != err { //nolint:errorlint // whether it is another
		return vm, err
	}
	list, err := s.list(ctx, s.namespace, "")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, other := range list.Items {
		if strings.HasPrefix(other.Name, name) {
			names, vm = append(names, other.Name), &other
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%s/%s is not in namespace %s: kubectl vm ps -a lists what is, -n names another", resourceName, name, s.namespace)
	case 1:
		return vm, nil
	}
	return nil, fmt.Errorf("%s is the beginning of %s: write more of it", name, strings.Join(names, ", "))
}

// vms finds several, and no one twice.
func (s *session) vms(ctx context.Context, names []string) (found []*v1alpha1.VirtualMachine, err error) {
	for _, name := range names {
		vm, failure := s.vm(ctx, name)
		if failure != nil {
			err = errors.Join(err, failure)
		} else if !slices.ContainsFunc(found, func(f *v1alpha1.VirtualMachine) bool { return f.UID == vm.UID }) {
			found = append(found, vm)
		}
	}
	return found, err
}

// pod is a VirtualMachine's berth, nil if it has none.
func (s *session) pod(ctx context.Context, vm *v1alpha1.VirtualMachine) (*corev1.Pod, error) {
	if vm.Status.Berth == nil {
		return nil, nil
	}
	pod := &corev1.Pod{}
	err := s.api.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: vm.Status.Berth.PodName}, pod)
	if apierrors.IsNotFound(err) || err == nil && pod.UID != vm.Status.Berth.PodUID {
		return nil, nil
	}
	return pod, err
}

// berth is the pod of a guest that is to be talked to. A VirtualMachine without one has an error that says what to do.
func (s *session) berth(ctx context.Context, name string) (*v1alpha1.VirtualMachine, *corev1.Pod, error) {
	vm, err := s.vm(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	pod, err := s.pod(ctx, vm)
	switch {
	case err != nil || pod != nil:
		return vm, pod, err
	case vm.Spec.State == v1alpha1.StateStopped || vm.Status.Ended != nil:
		return nil, nil, fmt.Errorf("%[1]s/%[2]s has no guest: kubectl vm start %[2]s", resourceName, vm.Name)
	default:
		return nil, nil, fmt.Errorf("%[1]s/%[2]s has no guest yet: kubectl vm why %[2]s", resourceName, vm.Name)
	}
}

// printFlags are kubectl's -o for objects of ours.
func printFlags(operation string) *genericclioptions.PrintFlags {
	return genericclioptions.NewPrintFlags(operation).WithTypeSetter(kube.Scheme())
}

// print writes an object as -o asks, by default as kubectl does: virtualmachine.berth.dev/web started.
func (s *session) print(flags *genericclioptions.PrintFlags, object runtime.Object) error {
	printer, err := flags.ToPrinter()
	if err != nil {
		return err
	}
	return printer.PrintObj(object, s.Out)
}
