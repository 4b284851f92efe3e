package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/badregistry"
)

const (
	// hostileStarts is how many starts are measured, alone and beside hostile images.
	hostileStarts = 10
	// hostileMemory is what an agent may take beside two pulls of a namespace and a large zstd window, in MiB.
	hostileMemory = 40 + 2*25 + 128
	// zeroesGiB is the size of a disk without data: to unpack it keeps a core busy for a minute or more.
	zeroesGiB = 250
)

// attack is a namespace of VirtualMachines with hostile images.
type attack struct {
	*bench
	registry *badregistry.Registry
	address  string
	ns       *corev1.Namespace
}

// hostile measures starts, with images that are pulled, beside n VirtualMachines of another tenant on the same node whose
// images take as much of the agent as they can, and what they get.
func (b *bench) hostile(ctx context.Context, n int) (figures []figure, err error) {
	a := &attack{bench: b, registry: badregistry.New(), address: os.Getenv("LAB_TEST_REGISTRY")}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.address)
	if err != nil {
		return nil, fmt.Errorf("serving a registry to the lab: %w", err)
	}
	defer a.registry.Serve(listener)()
	token, tidy, err := b.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tidy()) }()
	if _, err := a.start(ctx, "warm"); err != nil { // it does not count
		return nil, err
	}
	alone, err := a.starts(ctx, "alone")
	if err != nil {
		return nil, err
	}
	before, err := b.workingSets(ctx, b.node, agentName)
	if err != nil {
		return nil, err
	}

	a.ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-hostile-"}}
	if err := a.Create(ctx, a.ns); err != nil {
		return nil, fmt.Errorf("making namespace: %w", err)
	}
	defer func() { err = errors.Join(err, a.end(ctx)) }()
	if err := a.begin(ctx, n); err != nil {
		return nil, err
	}
	began := time.Now()
	then, err := b.berth(ctx, token)
	if err != nil {
		return nil, err
	}
	memory, stop := a.watchMemory(ctx)
	beside, err := a.starts(ctx, "beside")
	if err != nil {
		return nil, err
	}
	now, err := b.berth(ctx, token)
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	stop()
	sets, err := memory()
	if err != nil {
		return nil, err
	}
	if a.pulling() == 0 {
		return nil, fmt.Errorf("the hostile images were all pulled before the last start: measure with more than %d", n)
	}
	agent := "agent on " + b.node
	const cpu = "process_cpu_seconds_total"
	besideAttack := fmt.Sprintf("%d VirtualMachines of another tenant pull four hostile images each", n)
	return append(figures,
		one("hostile_start_ratio", "x", 1.5, besideAttack+"; a start alone, medians of one run", median(beside)/median(alone)),
		of("hostile_start", "s", 0, "with the pull of a disk", beside),
		of("hostile_start_alone", "s", 0, "the same", alone),
		one("hostile_agent_working_set", "MiB", hostileMemory, fmt.Sprintf("at most, was %.0f", slices.Max(before)), slices.Max(sets)),
		one("hostile_agent_cpu", "%", 0, "of a core, meanwhile", (now[agent].value(cpu)-then[agent].value(cpu))/took.Seconds()*100),
	), nil
}

// start is how long it takes from a request until the guest runs, whose disk has to be pulled.
func (a *attack) start(ctx context.Context, name string) (time.Duration, error) {
	const mib = 1 << 20
	disk := make([]byte, mib)
	_, _ = rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%-32.32s", a.bench.ns+name))).Read(disk)
	a.registry.Push(a.bench.ns+"/"+name, badregistry.Disk(string(disk)))
	vm := a.guest(name)
	size := resource.MustParse("64Mi")
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", Image: a.address + "/" + a.bench.ns + "/" + name, Size: &size}}
	took, err := timed(ctx, a.bench, &v1alpha1.VirtualMachineList{}, vm, isRunning)
	if err != nil {
		return 0, err
	}
	settle()
	_, err = gone(ctx, a.bench, &v1alpha1.VirtualMachineList{}, vm)
	return took, err
}

func (a *attack) starts(ctx context.Context, name string) (seconds []float64, err error) {
	for i := range hostileStarts {
		took, err := a.start(ctx, fmt.Sprintf("%s-%d", name, i))
		if err != nil {
			return nil, err
		}
		seconds = append(seconds, took.Seconds())
	}
	return seconds, nil
}

// begin makes the VirtualMachines, of four images each, and waits until the first of these are being pulled.
func (a *attack) begin(ctx context.Context, n int) error {
	images := []badregistry.Image{badregistry.Zeroes(zeroesGiB), badregistry.Whiteouts(200), badregistry.Window(), badregistry.Whiteouts(200)}
	size := resource.MustParse("64Mi")
	if err := each(n, connections, func(i int) error {
		vm := a.guest(fmt.Sprintf("hostile-%d", i))
		vm.Namespace = a.ns.Name
		vm.Spec.Kernel, vm.Spec.Memory.Size = nil, resource.MustParse("16Mi")
		vm.Spec.Disks = nil
		for j, image := range images {
			repository := fmt.Sprintf("%s/hostile-%d-%d", a.ns.Name, i, j)
			a.registry.Push(repository, image)
			vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: fmt.Sprint("disk-", j), Image: a.address + "/" + repository, Size: &size})
		}
		return a.Create(ctx, vm)
	}); err != nil {
		return err
	}
	for a.pulling() == 0 {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the hostile images to be pulled: %w", err)
		}
	}
	return nil
}

// pulling is how many of the hostile images are being pulled.
func (a *attack) pulling() (n int) { return a.registry.Sending(a.ns.Name + "/") }

// end deletes the VirtualMachines, and waits until they are gone.
func (a *attack) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	if err := a.Delete(ctx, a.ns); err != nil {
		return fmt.Errorf("deleting namespace: %w", err)
	}
	for {
		var left v1alpha1.VirtualMachineList
		if err := a.List(ctx, &left, client.InNamespace(a.ns.Name)); err != nil {
			return err
		}
		if len(left.Items) == 0 {
			return nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("waiting for the end of %d VirtualMachines: %w", len(left.Items), err)
		}
	}
}

// watchMemory looks at the agent's working set whenever kubelet does, until stop is called; seen then has what it saw.
func (a *attack) watchMemory(ctx context.Context) (seen func() ([]float64, error), stop func()) {
	ctx, stop = context.WithCancel(ctx)
	var sets []float64
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for failed == nil && (ctx.Err() == nil || len(sets) == 0) {
			var more []float64
			more, failed = a.workingSets(context.WithoutCancel(ctx), a.node, agentName)
			sets = append(sets, more...)
		}
	}()
	return func() ([]float64, error) {
		<-ended
		return sets, failed
	}, stop
}
