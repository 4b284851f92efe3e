package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// listed is how many VirtualMachines kubectl vm ps lists.
const listed = 1000

// ps measures a list of stopped VirtualMachines.
func (b *bench) ps(ctx context.Context, n int) (figures []figure, err error) {
	defer func() {
		err = errors.Join(err, b.DeleteAllOf(ctx, &v1alpha1.VirtualMachine{}, client.InNamespace(b.ns)), b.stopped(ctx, 0))
	}()
	if err := each(listed, connections, func(i int) error {
		vm := b.guest(guestName(i))
		vm.Spec.State = v1alpha1.StateStopped
		return b.Create(ctx, vm)
	}); err != nil {
		return nil, err
	}
	if err := b.stopped(ctx, listed); err != nil {
		return nil, err
	}
	command := func(args ...string) does {
		return func() (time.Duration, error) { return b.kubectl(ctx, "", "", args...) }
	}
	return pair{"ps", 1.5, fmt.Sprintf("kubectl get vm of %d", listed), command("vm", "ps", "-a"), command("get", "vm")}.measure(n)
}

// stopped waits until there are so many VirtualMachines, and all are stopped.
func (b *bench) stopped(ctx context.Context, count int) error {
	return wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.VirtualMachineList
		err := b.List(ctx, &list, client.InNamespace(b.ns))
		return len(list.Items) == count && !slices.ContainsFunc(list.Items, func(vm v1alpha1.VirtualMachine) bool { return vm.Status.Phase != v1alpha1.PhaseStopped }), err
	})
}

// run measures how long it takes from kubectl vm run -it to the console's first byte, beside kubectl apply and logs -f for the
// same VirtualMachine.
func (b *bench) run(ctx context.Context, n int) ([]figure, error) {
	dir, err := os.MkdirTemp("", "bench-run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	manifest := dir + "/vm.yaml"
	command := []string{"vm", "run", "--name=run", "-m=96Mi", "--kernel", "--append=no_timer_check", os.Getenv("LAB_IMAGE_KERNEL")}
	if _, err := b.kubectl(ctx, "", manifest, append(command, "--dry-run=client", "-o=yaml")...); err != nil {
		return nil, err
	}
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: b.ns, Name: "run"}}
	// after ends the guest, and says how long it took to the byte.
	after := func(began, spoke time.Time, err error) (time.Duration, error) {
		settle()
		if _, e := b.kubectl(ctx, "", "", "vm", "kill", vm.Name); e != nil { // it has a minute, and may not listen yet
			return 0, errors.Join(err, e)
		}
		_, failure := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
		return spoke.Sub(began), errors.Join(err, failure)
	}
	return pair{"run_first_byte", 1.1, "kubectl apply, kubectl logs -f", func() (time.Duration, error) {
		began := time.Now()
		spoke, err := b.speaks(ctx, append(command, "-it")...)
		return after(began, spoke, err)
	}, func() (time.Duration, error) {
		began := time.Now()
		_, err := b.kubectl(ctx, "", "", "apply", "-f", manifest)
		spoke := time.Time{}
		for err == nil && spoke.IsZero() { // it fails as long as there is no container
			spoke, err = b.speaks(ctx, "logs", "-f", "run")
		}
		return after(began, spoke, err)
	}}.measure(max(3, n/4))
}

// speaks runs kubectl on a terminal until it has printed a byte, and tells when; never, if it ended before.
func (b *bench) speaks(ctx context.Context, args ...string) (at time.Time, err error) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return at, err
	}
	defer terminal.Close()
	if err := unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return at, err
	}
	fd, err := unix.IoctlRetInt(int(terminal.Fd()), unix.TIOCGPTPEER)
	if err != nil {
		return at, err
	}
	stdin := os.NewFile(uintptr(fd), "terminal")
	defer stdin.Close()
	cmd := exec.CommandContext(ctx, "kubectl", b.inNamespace(args)...)
	cmd.Stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return at, err
	}
	if err := cmd.Start(); err != nil {
		return at, err
	}
	if _, err := stdout.Read(make([]byte, 1)); err == nil {
		at = time.Now()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	return at, ctx.Err()
}
