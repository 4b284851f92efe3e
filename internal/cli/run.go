package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// runOptions are the flags of run.
type runOptions struct {
	name, memory, size, kernelArgs, initrd, userData, restart, pull, display, dryRun, detachKeys string
	cpus, ttl                                                                                    int32
	kernel, detach, stdin, tty, rm, hasKeys                                                      bool
	publish, keys                                                                                []string
	labels                                                                                       map[string]string
	print                                                                                        *genericclioptions.PrintFlags
}

func (s *session) run() *cobra.Command {
	o := &runOptions{print: printFlags("created")}
	var cmd *cobra.Command
	cmd = s.verb("run IMAGE [flags] [-- COMMAND [ARG…]]", "Create a VirtualMachine from an image, and follow its guest to its end", cobra.MinimumNArgs(1), -1, func(ctx context.Context, args []string) error {
		if n := cmd.ArgsLenAtDash(); n > 1 || n < 0 && len(args) > 1 {
			return fmt.Errorf("%s is no flag and no image: write the guest's command after --", args[1])
		}
		o.hasKeys = cmd.Flags().Changed("ssh-key")
		return s.runGuest(ctx, o, args[0], args[1:])
	})
	cmd.Long = "Create a VirtualMachine from an image and follow its guest to its end, whose exit code becomes this program's.\n\n" +
		"COMMAND is run in the guest by its guest program, and its end ends the guest. With --kernel it is what the kernel hands to init."
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
	f.StringToStringVarP(&o.labels, "label", "l", nil, "A label of the VirtualMachine, as KEY=VALUE")
	f.StringVar(&o.restart, "restart", "", "What follows the guest's end: Always (default with -d), OnFailure or Never (default without)")
	f.StringVar(&o.pull, "pull", "missing", "Ask the registry for the image always, if it is missing on the node, or never")
	f.Int32Var(&o.ttl, "ttl", -1, "Seconds after which a guest that has ended is deleted with its disks")
	f.StringVar(&o.display, "display", "", "Give the guest a screen: VGA or Virtio")
	f.BoolVarP(&o.detach, "detach", "d", false, "Leave the guest once it is created")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "With -t: join this terminal with the guest's console; with COMMAND: give it this program's input")
	f.BoolVarP(&o.tty, "tty", "t", false, "See -i")
	f.BoolVar(&o.rm, "rm", false, "Delete the VirtualMachine at the guest's end")
	f.StringVar(&o.dryRun, "dry-run", "none", "client: print the VirtualMachine alone; server: have the API server check it, too")
	f.Lookup("display").NoOptDefVal, f.Lookup("dry-run").NoOptDefVal = string(v1alpha1.DisplayVGA), "client"
	addDetachKeys(cmd, &o.detachKeys)
	o.print.AddFlags(cmd)
	return cmd
}

// vm is the VirtualMachine that the flags ask for.
func (o *runOptions) vm(namespace, image string, words []string) (*v1alpha1.VirtualMachine, error) {
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: cmp.Or(o.name, nameOf(image)), Labels: o.labels}}
	policy := v1alpha1.RestartNever
	if o.detach && !o.rm {
		policy = v1alpha1.RestartAlways
	}
	vm.Spec.CPU.Cores, vm.Spec.RestartPolicy = o.cpus, cmp.Or(v1alpha1.RestartPolicy(o.restart), policy)
	if o.rm {
		if vm.Spec.RestartPolicy != v1alpha1.RestartNever {
			return nil, fmt.Errorf("--rm and --restart %s contradict each other: leave one out", o.restart)
		}
		vm.Spec.TTLSecondsAfterFinished = new(int32(60)) // for when nobody deletes it
		if len(words) > 0 && !o.kernel {
			vm.Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{ // for when nobody gets as far as the command
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", lifelineHeld}}},
				PeriodSeconds: 5, TimeoutSeconds: 5, FailureThreshold: int32(lifelineTimeout / (5 * time.Second)),
			}}
		}
	}
	pull, isPolicy := map[string]corev1.PullPolicy{"always": corev1.PullAlways, "missing": "", "never": corev1.PullNever}[o.pull]
	if vm.Spec.ImagePullPolicy = pull; !isPolicy {
		return nil, fmt.Errorf("--pull %s is none of always, missing and never", o.pull)
	}
	if o.ttl >= 0 {
		vm.Spec.TTLSecondsAfterFinished = &o.ttl
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
	var err error
	if vm.Spec.Memory.Size, err = resource.ParseQuantity(o.memory); err != nil {
		return nil, fmt.Errorf("-m %s is no size: write one such as 2Gi", o.memory)
	}
	if vm.Spec.SSHAuthorizedKeys, err = o.sshKeys(); err != nil {
		return nil, err
	}
	return vm, o.boot(&vm.Spec, image, words)
}

// boot is what the guest boots from.
func (o *runOptions) boot(spec *v1alpha1.VirtualMachineSpec, image string, words []string) error {
	size, err := resource.ParseQuantity(cmp.Or(o.size, "0"))
	switch {
	case err != nil:
		return fmt.Errorf("--size %s is no size: write one such as 20Gi", o.size)
	case o.kernel && o.size != "":
		return errors.New("--size is a disk's: a guest of --kernel has none")
	case !o.kernel && o.kernelArgs != "":
		return errors.New("--append is for --kernel: the boot loader of a disk has its own command line")
	case !o.kernel:
		spec.Disks = []v1alpha1.Disk{{Name: "root", Image: image}}
		if o.size != "" {
			spec.Disks[0].Size = &size
		}
		return nil
	}
	line := []string{strings.TrimSpace("console=ttyS0 " + o.kernelArgs)}
	if len(words) > 0 {
		line = append(line, "--")
	}
	for _, word := range words {
		if strings.ContainsAny(word, "\"\n\r\t") {
			return fmt.Errorf("%q cannot stand on a kernel's command line: leave quotes and control characters out", word)
		}
		if strings.Contains(word, " ") || word == "" {
			word = `"` + word + `"`
		}
		line = append(line, word)
	}
	spec.Kernel = &v1alpha1.Kernel{Image: image, InitrdPath: o.initrd, CommandLine: strings.Join(line, " ")}
	return nil
}

// nameOf makes a name of an image's, without registry, tag and digest, or of a URL's last part.
func nameOf(image string) string {
	image = image[:strings.IndexAny(image+"#", "#?")]
	base, _, _ := strings.Cut(image[strings.LastIndex(image, "/")+1:], "@")
	base, _, _ = strings.Cut(base, ":")
	base = regexp.MustCompile("[^a-z0-9]+").ReplaceAllString(strings.ToLower(base), "-")
	return strings.Trim(strings.Trim(base[:min(len(base), 50)], "-")+"-"+rand.String(5), "-")
}

// sshKeys are the user's public keys, or those that --ssh-key names.
func (o *runOptions) sshKeys() (keys []string, err error) {
	sources := o.keys
	if home, err := os.UserHomeDir(); err == nil && !o.hasKeys && !o.kernel {
		sources, _ = filepath.Glob(filepath.Join(home, ".ssh", "id_*.pub"))
	}
	for _, text := range sources {
		if text != "" && !strings.Contains(text, " ") {
			raw, err := os.ReadFile(text)
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

var portFlag = regexp.MustCompile(`^(?:([1-9]\d{0,4}):)?([1-9]\d{0,4})(?i:/(tcp|udp))?$`)

// ports are those of -p.
func (o *runOptions) ports() (ports []corev1.ServicePort, err error) {
	for _, p := range o.publish {
		m := portFlag.FindStringSubmatch(p)
		if m == nil {
			return nil, fmt.Errorf("-p %s is no port: write [PORT:]PORT[/udp], such as 8080:80", p)
		}
		protocol := strings.ToUpper(cmp.Or(m[3], "tcp"))
		outer, _ := strconv.Atoi(cmp.Or(m[1], m[2]))
		inner, _ := strconv.Atoi(m[2])
		name := fmt.Sprintf("%s-%d", strings.ToLower(protocol), outer)
		ports = append(ports, corev1.ServicePort{Name: name, Protocol: corev1.Protocol(protocol), Port: int32(outer), TargetPort: intstr.FromInt(inner)}) //nolint:gosec // five digits; the API server takes 16 bits
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
	case o.tty && o.dryRun == "none" && !isTerminal(s.In):
		return errors.New("this is no terminal: leave -t out")
	}
	vm, err := o.vm(s.namespace, image, words)
	if err != nil {
		return err
	}
	ports, err := o.ports()
	if err != nil {
		return err
	}
	creating, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second) // cut off, it would leave what nobody knows of
	defer cancel()
	switch o.dryRun {
	case "server":
		err = s.api.Create(ctx, vm, client.DryRunAll)
	case "none":
		err = s.api.Create(creating, vm)
	}
	if err != nil {
		return err
	}
	if o.dryRun == "none" && len(ports) > 0 {
		owner := metav1.NewControllerRef(vm, v1alpha1.GroupVersion.WithKind("VirtualMachine"))
		owner.BlockOwnerDeletion = nil // it would need the right to update finalizers
		if err := s.api.Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Name, OwnerReferences: []metav1.OwnerReference{*owner}},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{berth.LabelVM: vm.Name}, Ports: ports},
		}); err != nil {
			return errors.Join(err, s.remove(context.WithoutCancel(ctx), vm, true))
		}
	}
	if o.detach || o.dryRun != "none" {
		return s.print(o.print, vm)
	}
	fmt.Fprintf(s.ErrOut, "%s/%s created\n", resourceName, vm.Name)
	return s.follow(ctx, o, vm, words, isCommand)
}
