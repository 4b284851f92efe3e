package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// ttlOfThrowAway is how long, in seconds, a guest of run --rm stays after its end if nobody deletes it.
const ttlOfThrowAway = 60

// runOptions are the flags of run.
type runOptions struct {
	name, memory, size, kernelArgs, initrd, userData, restart, display, dryRun string
	cpus                                                                       int32
	ttl                                                                        int32
	kernel, detach, stdin, tty, rm                                             bool
	publish, keys, labels                                                      []string
	detachKeys                                                                 string
	hasKeys                                                                    bool
	print                                                                      *genericclioptions.PrintFlags
}

func (s *session) run() *cobra.Command {
	o := &runOptions{print: printFlags("created")}
	cmd := &cobra.Command{
		Use:   "run IMAGE [flags] [-- COMMAND [ARG…]]",
		Short: "Create a VirtualMachine from an image, and follow its guest to its end",
		Long: "Create a VirtualMachine from an image and follow its guest to its end, whose exit code becomes this program's.\n\n" +
			"COMMAND is run in the guest by its guest program, and its end ends the guest. With --kernel it is what the kernel hands to init.",
		Example: "  kubectl vm run -d --name web -p 80 quay.io/containerdisks/debian:12\n  kubectl vm run --rm -it quay.io/containerdisks/debian:12\n" +
			"  kubectl vm run --rm quay.io/containerdisks/debian:12 -- uname -r\n  kubectl vm run --rm --kernel registry.example.org/guests/kernel:1 -- exit=3",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n > 1 || n < 0 && len(args) > 1 {
				return fmt.Errorf("%s is no flag and no image: write the guest's command after --", args[1])
			}
			o.hasKeys = cmd.Flags().Changed("ssh-key")
			return s.runGuest(cmd.Context(), o, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "The VirtualMachine's name; by default the image's with five letters more")
	f.Int32Var(&o.cpus, "cpus", 1, "The guest's virtual processors")
	f.StringVarP(&o.memory, "memory", "m", "1Gi", "The guest's memory")
	f.StringVar(&o.size, "size", "", "The size of the guest's disk; by default the image's")
	f.BoolVar(&o.kernel, "kernel", false, "IMAGE holds a kernel, /boot/vmlinuz, to boot directly")
	f.StringVar(&o.initrd, "initrd", "/boot/initrd", "The initial RAM disk's path in a kernel's IMAGE; empty for none")
	f.StringVar(&o.kernelArgs, "append", "", "More words for the kernel's command line")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "Make a Service for a port of the guest, as [PORT:]PORT[/udp]")
	f.StringArrayVar(&o.keys, "ssh-key", nil, "A public key, or a file with some, for the guest's default user; by default yours in ~/.ssh; empty for none")
	f.StringVar(&o.userData, "user-data", "", "A file with cloud-init's user data; whoever reads the VirtualMachine can read it")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "A label of the VirtualMachine, as KEY=VALUE")
	f.StringVar(&o.restart, "restart", "", "What follows the guest's end: Always (default with -d), OnFailure or Never (default without)")
	f.Int32Var(&o.ttl, "ttl", -1, "Seconds after which a guest that has ended is deleted with its disks")
	f.StringVar(&o.display, "display", "", "Give the guest a screen: VGA or Virtio")
	f.Lookup("display").NoOptDefVal = string(v1alpha1.DisplayVGA)
	f.BoolVarP(&o.detach, "detach", "d", false, "Leave the guest once it is created")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "With -t: join this terminal with the guest's console; with COMMAND: give it this program's input")
	f.BoolVarP(&o.tty, "tty", "t", false, "See -i")
	f.BoolVar(&o.rm, "rm", false, "Delete the VirtualMachine at the guest's end")
	addDetachKeys(cmd, &o.detachKeys)
	f.StringVar(&o.dryRun, "dry-run", "none", "client: print the VirtualMachine alone; server: have the API server check it, too")
	f.Lookup("dry-run").NoOptDefVal = "client"
	o.print.AddFlags(cmd)
	return cmd
}

// vm is the VirtualMachine that the flags ask for.
func (o *runOptions) vm(namespace, image string, words []string) (*v1alpha1.VirtualMachine, error) {
	memory, err := resource.ParseQuantity(o.memory)
	if err != nil {
		return nil, fmt.Errorf("-m %s is no size: write one such as 2Gi", o.memory)
	}
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: o.name},
		Spec: v1alpha1.VirtualMachineSpec{
			CPU: v1alpha1.CPU{Cores: o.cpus}, Memory: v1alpha1.Memory{Size: memory}, RestartPolicy: v1alpha1.RestartPolicy(o.restart),
		},
	}
	if vm.Name == "" {
		vm.Name = nameOf(image)
	}
	switch {
	case o.restart != "":
	case o.detach && !o.rm:
		vm.Spec.RestartPolicy = v1alpha1.RestartAlways
	default:
		vm.Spec.RestartPolicy = v1alpha1.RestartNever
	}
	if err := o.boot(&vm.Spec, image, words); err != nil {
		return nil, err
	}
	if o.display != "" {
		vm.Spec.Display = &v1alpha1.Display{Type: v1alpha1.DisplayType(o.display)}
	}
	if o.userData != "" {
		raw, err := os.ReadFile(o.userData)
		if err != nil {
			return nil, fmt.Errorf("--user-data: %w", err)
		}
		vm.Spec.CloudInit = &v1alpha1.CloudInit{UserData: new(string(raw))}
	}
	if vm.Spec.SSHAuthorizedKeys, err = o.sshKeys(); err != nil {
		return nil, err
	}
	for _, label := range o.labels {
		key, value, _ := strings.Cut(label, "=")
		metav1.SetMetaDataLabel(&vm.ObjectMeta, key, value)
	}
	switch {
	case o.rm && vm.Spec.RestartPolicy != v1alpha1.RestartNever:
		return nil, fmt.Errorf("--rm and --restart %s contradict each other: leave one out", o.restart)
	case o.rm:
		vm.Spec.TTLSecondsAfterFinished = new(int32(ttlOfThrowAway))
	}
	if o.ttl >= 0 {
		vm.Spec.TTLSecondsAfterFinished = &o.ttl
	}
	return vm, nil
}

// boot is what the guest boots from.
func (o *runOptions) boot(spec *v1alpha1.VirtualMachineSpec, image string, words []string) error {
	if !o.kernel {
		if o.kernelArgs != "" {
			return errors.New("--append is for --kernel: the boot loader of a disk has its own command line")
		}
		disk := v1alpha1.Disk{Name: "root", Image: image}
		if o.size != "" {
			size, err := resource.ParseQuantity(o.size)
			if err != nil {
				return fmt.Errorf("--size %s is no size: write one such as 20Gi", o.size)
			}
			disk.Size = &size
		}
		spec.Disks = []v1alpha1.Disk{disk}
		return nil
	}
	if o.size != "" {
		return errors.New("--size is a disk's: a guest of --kernel has none")
	}
	line := strings.TrimSpace("console=ttyS0 " + o.kernelArgs)
	if len(words) > 0 {
		line += " --"
	}
	for _, word := range words {
		switch {
		case strings.ContainsAny(word, "\"\n\r\t"):
			return fmt.Errorf("%q cannot stand on a kernel's command line: leave quotes and control characters out", word)
		case strings.Contains(word, " ") || word == "":
			word = `"` + word + `"`
		}
		line += " " + word
	}
	spec.Kernel = &v1alpha1.Kernel{Image: image, InitrdPath: o.initrd, CommandLine: line}
	return nil
}

// nameOf makes a name of an image's.
func nameOf(image string) string {
	base := image
	if ref, err := reference.ParseNormalizedNamed(image); err == nil {
		base = path.Base(reference.Path(ref))
	}
	base = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(base)), "-")
	if len(base) > 50 {
		base = strings.TrimRight(base[:50], "-")
	}
	return strings.TrimLeft(base+"-"+rand.String(5), "-")
}

// sshKeys are the user's public keys, or those that --ssh-key names.
func (o *runOptions) sshKeys() (keys []string, err error) {
	sources := o.keys
	if !o.hasKeys && !o.kernel {
		if home, err := os.UserHomeDir(); err == nil {
			sources, _ = filepath.Glob(filepath.Join(home, ".ssh", "id_*.pub"))
		}
	}
	for _, source := range sources {
		text := source
		if source != "" && !strings.Contains(source, " ") {
			raw, err := os.ReadFile(source)
			if err != nil {
				return nil, fmt.Errorf("--ssh-key: %w", err)
			}
			text = string(raw)
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				keys = append(keys, line)
			}
		}
	}
	return keys, nil
}

// ports are those of -p, nil if there are none.
func (o *runOptions) ports() (ports []corev1.ServicePort, err error) {
	for _, p := range o.publish {
		numbers, protocol, isProtocol := strings.Cut(p, "/")
		port := corev1.ServicePort{Protocol: corev1.ProtocolTCP}
		if isProtocol {
			port.Protocol = corev1.Protocol(strings.ToUpper(protocol))
		}
		outer, inner, isPair := strings.Cut(numbers, ":")
		if !isPair {
			inner = outer
		}
		a, errA := strconv.ParseUint(outer, 10, 16)
		b, errB := strconv.ParseUint(inner, 10, 16)
		if errA != nil || errB != nil || a == 0 || b == 0 || port.Protocol != corev1.ProtocolTCP && port.Protocol != corev1.ProtocolUDP {
			return nil, fmt.Errorf("-p %s is no port: write [PORT:]PORT[/udp], such as 8080:80", p)
		}
		port.Port, port.TargetPort = int32(a), intstr.FromInt32(int32(b))
		port.Name = strings.ToLower(fmt.Sprintf("%s-%d", port.Protocol, a))
		ports = append(ports, port)
	}
	return ports, nil
}

// runGuest creates what the flags ask for, and follows the guest unless they say not to.
func (s *session) runGuest(ctx context.Context, o *runOptions, image string, words []string) error {
	isCommand := len(words) > 0 && !o.kernel
	switch {
	case !slices.Contains([]string{"none", "client", "server"}, o.dryRun):
		return fmt.Errorf("--dry-run=%s is none of none, client and server", o.dryRun)
	case !isCommand && o.stdin != o.tty:
		return errors.New("the guest's console is a terminal: give -i and -t together, or neither")
	case o.detach && (o.stdin || o.tty || isCommand):
		return errors.New("-d leaves the guest at once: leave it out, or -i, -t and the command")
	}
	if err := s.connect(); err != nil {
		return err
	}
	vm, err := o.vm(s.namespace, image, words)
	if err != nil {
		return err
	}
	ports, err := o.ports()
	if err != nil {
		return err
	}
	if o.dryRun == "client" {
		if err := s.typed(vm); err != nil {
			return err
		}
		return s.print(o.print, vm)
	}
	if o.dryRun == "server" {
		if err := s.api.Create(ctx, vm, client.DryRunAll); err != nil {
			return err
		}
		return s.print(o.print, vm)
	}
	if err := s.api.Create(ctx, vm); err != nil {
		return err
	}
	if err := s.publish(ctx, vm, ports); err != nil {
		return errors.Join(err, s.remove(context.WithoutCancel(ctx), vm, true))
	}
	if o.detach {
		return s.print(o.print, vm)
	}
	fmt.Fprintf(s.ErrOut, "%s/%s created\n", resourceName, vm.Name)
	return s.follow(ctx, o, vm, words, isCommand)
}

// publish makes the Service of a guest's ports. It goes with the VirtualMachine.
func (s *session) publish(ctx context.Context, vm *v1alpha1.VirtualMachine, ports []corev1.ServicePort) error {
	if len(ports) == 0 {
		return nil
	}
	owner := metav1.NewControllerRef(vm, v1alpha1.GroupVersion.WithKind("VirtualMachine"))
	owner.BlockOwnerDeletion = nil // it would need the right to update finalizers
	return s.api.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Name, OwnerReferences: []metav1.OwnerReference{*owner}},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{berth.LabelVM: vm.Name}, Ports: ports},
	})
}

// follow stays with a guest to its end, or its user's, and ends with its exit code.
func (s *session) follow(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine, words []string, isCommand bool) error {
	var err error
	detached := false
	switch {
	case isCommand:
		err = s.runCommand(ctx, o, vm, words)
	case o.tty:
		detached, err = s.joinConsole(ctx, o, vm)
	default:
		err = s.showConsole(ctx, vm, s.Out)
	}
	if detached {
		fmt.Fprintf(s.ErrOut, "\r\nDetached from %s, which runs on: kubectl vm attach %s\n", vm.Name, vm.Name)
		return nil
	}
	if err == nil && !isCommand {
		err = s.end(ctx, vm)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second) // also when ctx has ended
	defer cancel()
	switch {
	case o.rm:
		err = errors.Join(err, s.remove(clean, vm, true))
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(s.ErrOut, "%s/%s stays: kubectl vm stop %s, or rm -f\n", resourceName, vm.Name, vm.Name)
	case isCommand:
		err = errors.Join(err, s.change(clean, vm, &change{edit: func(vm *v1alpha1.VirtualMachine) error { vm.Spec.State = v1alpha1.StateStopped; return nil }}))
	}
	return err
}

// runCommand waits for the guest program and runs a command by it.
func (s *session) runCommand(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine, words []string) error {
	err := s.awaitVM(ctx, vm, func(seen *v1alpha1.VirtualMachine) (bool, error) {
		if err := s.unfinished(vm, seen); err != nil {
			return false, err
		}
		return runs(seen) && tools(seen) != "", stalls(seen)
	})
	if err != nil {
		return err
	}
	_, pod, err := s.berth(ctx, vm.Name)
	if err != nil {
		return err
	}
	return s.runIn(ctx, pod, (&command{argv: words}).line(), o.stdin, o.tty, s.IOStreams)
}

// unfinished is an error if a guest that is wanted has gone already.
func (s *session) unfinished(vm, seen *v1alpha1.VirtualMachine) error {
	switch {
	case seen == nil:
		fmt.Fprintf(s.ErrOut, "%s/%s was deleted\n", resourceName, vm.Name)
		return exitCode(exitKilled)
	case seen.Status.Ended != nil:
		return fmt.Errorf("%s/%s ended before it could be used (%s): kubectl vm why %s", resourceName, vm.Name, seen.Status.Ended.Reason, vm.Name)
	}
	return nil
}

// end waits for the guest's end, which nothing follows, and returns its exit code.
func (s *session) end(ctx context.Context, vm *v1alpha1.VirtualMachine) error {
	code := exitCode(0)
	err := s.awaitVM(ctx, vm, func(seen *v1alpha1.VirtualMachine) (bool, error) {
		switch {
		case seen == nil:
			code = exitKilled
			return true, nil
		case seen.Status.Ended == nil && (seen.Spec.RestartPolicy != v1alpha1.RestartAlways || seen.Status.LastExit == nil):
			return false, stalls(seen)
		case seen.Status.LastExit != nil:
			code = exitCode(seen.Status.LastExit.ExitCode)
		case seen.Status.Ended.Phase == v1alpha1.PhaseFailed:
			code = exitKilled // its pod was taken away, and its node's agent has no word on it
		}
		return true, nil
	})
	if err != nil || code == 0 {
		return err
	}
	return code
}

// started waits until the container of a guest runs, or has run.
func (s *session) started(ctx context.Context, vm *v1alpha1.VirtualMachine) (*corev1.Pod, error) {
	if err := s.awaitVM(ctx, vm, func(seen *v1alpha1.VirtualMachine) (bool, error) {
		if seen == nil {
			return false, s.unfinished(vm, nil)
		}
		seen.DeepCopyInto(vm)
		return seen.Status.Berth != nil, stalls(seen)
	}); err != nil {
		return nil, err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Status.Berth.PodName}}
	found := false
	err := s.await(ctx, pod, &corev1.PodList{}, vm.Status.Berth.PodUID, func(object client.Object) (string, bool, error) {
		seen, is := object.(*corev1.Pod)
		if !is {
			return "", true, nil
		}
		c := guestContainer(seen)
		found = c != nil && c.State.Waiting == nil
		seen.DeepCopyInto(pod)
		return "waiting for the pod of " + vm.Name, found, nil
	})
	if err == nil && !found {
		return nil, fmt.Errorf("the pod of %s/%s went before it ran: kubectl vm why %s", resourceName, vm.Name, vm.Name)
	}
	return pod, err
}

// showConsole writes a console's log from its first byte to its last. One that breaks is read again from where it broke.
func (s *session) showConsole(ctx context.Context, vm *v1alpha1.VirtualMachine, out io.Writer) error {
	pod, err := s.started(ctx, vm)
	if err != nil {
		return err
	}
	return s.followLog(ctx, pod, func(more []byte) error {
		_, err := out.Write(more)
		return err
	})
}

// followLog hands over the log of a pod's container until the container has ended.
func (s *session) followLog(ctx context.Context, pod *corev1.Pod, take func([]byte) error) error {
	clients, err := s.factory.KubernetesClientSet()
	if err != nil {
		return err
	}
	for taken := int64(0); ; {
		stream, err := clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: berth.Container, Follow: true}).Stream(ctx)
		if err != nil {
			return err
		}
		_, err = io.CopyN(io.Discard, stream, taken)
		for buf := make([]byte, 32<<10); err == nil; {
			var n int
			n, err = stream.Read(buf)
			taken += int64(n)
			if e := take(buf[:n]); e != nil {
				_ = stream.Close()
				return e
			}
		}
		_ = stream.Close()
		if ended, err := s.containerEnded(ctx, pod); ended || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond): // its kubelet or an API server went away, or has not said yet that the container ended
		}
	}
}

// wholeLog is the log of a pod's container up to now.
func (s *session) wholeLog(ctx context.Context, pod *corev1.Pod) ([]byte, error) {
	clients, err := s.factory.KubernetesClientSet()
	if err != nil {
		return nil, err
	}
	return clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: berth.Container}).Do(ctx).Raw()
}

// containerEnded tells whether the guest's container that pod tells of has ended.
func (s *session) containerEnded(ctx context.Context, pod *corev1.Pod) (bool, error) {
	now := &corev1.Pod{}
	if err := s.api.Get(ctx, client.ObjectKeyFromObject(pod), now); apierrors.IsNotFound(err) || err == nil && now.UID != pod.UID {
		return true, nil
	} else if err != nil {
		return false, err
	}
	c := guestContainer(now)
	return c == nil || c.State.Running == nil || c.ContainerID != guestContainer(pod).ContainerID, nil
}

// guestContainer is what kubelet says of the guest's container, nil if nothing yet.
func guestContainer(pod *corev1.Pod) *corev1.ContainerStatus {
	i := slices.IndexFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.Name == berth.Container })
	if i < 0 {
		return nil
	}
	return &pod.Status.ContainerStatuses[i]
}

// joinConsole attaches this terminal to a guest's console, and shows what it has printed before.
func (s *session) joinConsole(ctx context.Context, o *runOptions, vm *v1alpha1.VirtualMachine) (detached bool, err error) {
	if f, is := s.In.(*os.File); !is || !isTerminal(f) {
		return false, errors.New("this is no terminal: leave -it out")
	}
	pod, err := s.started(ctx, vm)
	if err != nil {
		return false, err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	j := newJoiner(s.Out, func() ([]byte, error) { return s.wholeLog(reading, pod) })
	logged := make(chan error, 1)
	go func() { logged <- s.followLog(reading, pod, j.logged) }()
	go func() {
		select {
		case <-j.joined:
			stop()
		case <-reading.Done():
		}
	}()
	c := s.console(pod, o.detachKeys)
	err = c.attach(ctx, j)
	switch {
	case c.detached.Load():
		return true, nil
	case j.isJoined() || ctx.Err() != nil:
		return false, errors.Join(err, ctx.Err())
	}
	return false, <-logged // it ended before there was much to attach to: the log has all of it
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// tools is the version of the guest program that has answered, "" if none has.
func tools(vm *v1alpha1.VirtualMachine) string {
	if vm.Status.Guest == nil {
		return ""
	}
	return vm.Status.Guest.Tools
}
