package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/guestlink"
)

const (
	// zeros writes 50 MB, in the largest blocks that a port takes whole.
	zeros     = "dd if=/dev/zero bs=32k count=1526"
	zerosSize = 1526 * 32 << 10
)

// does does something and returns how long it took.
type does func() (time.Duration, error)

// pair is something to do, and what it is measured beside.
type pair struct {
	name      string
	goal      float64
	versus    string
	do, other does
}

// measure does both in turn, n times.
func (p pair) measure(n int) ([]figure, error) {
	var ratios, values, others []float64
	for i := range n + 1 { // the first warms caches and does not count
		value, err := p.do()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		other, err := p.other()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", p.name, p.versus, err)
		}
		if i > 0 {
			values, others = append(values, value.Seconds()), append(others, other.Seconds())
			ratios = append(ratios, value.Seconds()/other.Seconds())
		}
	}
	return []figure{
		of(p.name+"_ratio", "x", p.goal, p.versus+", pair by pair", ratios),
		of(p.name, "s", 0, "", values),
		of(p.name+"_versus", "s", 0, p.versus, others),
	}, nil
}

// exec measures commands in a guest, and bytes that come of them and by copies, beside what is there without Berth.
func (b *bench) exec(ctx context.Context, n int) (figures []figure, err error) {
	vm := b.guest("exec")
	vm.Spec.Memory.Size = resource.MustParse("384Mi") // for two files
	vm.Spec.Kernel.Image = os.Getenv("LAB_IMAGE_HOSTILE")
	vm.Spec.Kernel.CommandLine += " tools"
	if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, hasTools); err != nil {
		return nil, err
	}
	bare, err := b.startBare(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.destroy(context.WithoutCancel(ctx), "bench")) }()
	dir, err := os.MkdirTemp("", "bench-exec-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "file")
	in := func(stdin, stdout string, command ...string) does {
		return func() (time.Duration, error) {
			return b.kubectl(ctx, stdin, stdout, append([]string{"exec", "exec", "-i=" + fmt.Sprint(stdin != ""), "--"}, command...)...)
		}
	}
	cp := func(from, to string) does {
		return func() (time.Duration, error) { return b.kubectl(ctx, "", "", "cp", from, to) }
	}
	for _, p := range []pair{
		{"exec_true", 1.3, "the shim's own command by exec", in("", "", "true"), in("", "", "/berth-shim", "started")},
		{"exec_out", 4, "dd of 50 MB over a bare domain's port", in("", file, "sh", "-c", zeros), bare.dd},
		{"cp_in", 1.25, "50 MB by exec", cp(file, b.ns+"/exec:/file"), in(file, "", "sh", "-c", "cat >/other")},
		{"cp_out", 1.25, "50 MB by exec", cp(b.ns+"/exec:/file", file), in("", file, "cat", "/other")},
	} {
		rounds := n
		if p.name != "exec_true" {
			rounds = max(3, n/4)
		}
		more, err := p.measure(rounds)
		if err != nil {
			return figures, err
		}
		figures = append(figures, more...)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != zerosSize {
		return figures, fmt.Errorf("%d bytes are to come of a copy: %v, %w", zerosSize, info, err)
	}
	_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	return figures, err
}

// hasTools: the guest program has answered.
func hasTools(vm *v1alpha1.VirtualMachine) bool {
	return vm.Status.Guest != nil && vm.Status.Guest.Tools != ""
}

// kubectlSays runs a command line of kubectl's and keeps what it says to its user.
func (b *bench) kubectlSays(ctx context.Context, said io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "kubectl", b.inNamespace(args)...)
	cmd.Stderr = said
	return cmd.Run()
}

// kubectl is how long a command line of kubectl's takes. Its input and output are files, if they are named.
func (b *bench) kubectl(ctx context.Context, stdin, stdout string, args ...string) (took time.Duration, err error) {
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "kubectl", b.inNamespace(args)...)
	cmd.Stderr = &said
	if stdin != "" {
		f, err := os.Open(stdin)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	if stdout != "" {
		f, err := os.Create(stdout)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		cmd.Stdout = f
	}
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return time.Since(began), nil
}

// inNamespace puts the namespace behind the verb: a plugin takes no flags before its name.
func (b *bench) inNamespace(args []string) []string {
	return slices.Concat(args[:1], []string{"-n", b.ns}, args[1:])
}

// bare is a domain like a guest's, whose guest program has this program for a shim.
type bare struct {
	guestlink.Link
	exit  net.Conn
	said  strings.Builder // by the command
	ended chan error      // of the command
}

// startBare starts a domain as somebody without Berth would have the guest's, and waits for its guest program.
func (b *bench) startBare(ctx context.Context, vm *v1alpha1.VirtualMachine) (*bare, error) {
	if err := b.describe(ctx, vm, "bench"); err != nil {
		return nil, err
	}
	return b.startDescribed(ctx)
}

func (b *bench) startDescribed(ctx context.Context) (*bare, error) {
	if err := b.create(ctx, "bench"); err != nil {
		return nil, err
	}
	socket := filepath.Join(os.Getenv("LAB_DIR"), "machines", b.node, "root", portsDir, "bench")
	guest, err := net.Dial("unix", socket+".guest.sock") //nolint:gosec // the lab tells where
	if err != nil {
		return nil, err
	}
	exit, err := net.Dial("unix", socket+".exit.sock") //nolint:gosec // the lab tells where
	if err != nil {
		return nil, errors.Join(err, guest.Close())
	}
	d, up := &bare{exit: exit, ended: make(chan error, 1)}, make(chan struct{})
	answers := sync.OnceFunc(func() { close(up) })
	d.Changed = func(isUp bool, _ string) {
		if isUp {
			answers()
		}
	}
	go func() { _ = d.Serve(guest) }()
	select {
	case <-up:
		return d, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the bare domain's guest program: %w", ctx.Err())
	}
}

// dd has the guest's dd write to its other port.
func (d *bare) dd() (time.Duration, error) {
	command, err := guestlink.Command{Args: []string{"sh", "-c", zeros + " of=$(echo /dev/vport*p3)"}}.Encode()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := d.Open(command, d); err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for left := zerosSize; left > 0; {
		n, err := d.exit.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("%d bytes are to come yet: %w", left, err)
		}
		left -= n
	}
	took := time.Since(began)
	return took, <-d.ended
}

// Take keeps what the command says.
func (d *bare) Take(_ int, said []byte) error {
	_, err := d.said.Write(said)
	return err
}

// Ended is told how dd ended.
func (d *bare) Ended(code int, err error) {
	if code != 0 {
		err = fmt.Errorf("dd ended with %d", code)
	}
	d.ended <- err
}

// Resize is the guest's side's alone.
func (*bare) Resize(guestlink.Size) {}

// Signal is the guest's side's alone.
func (*bare) Signal(int) {}
