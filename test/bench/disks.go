package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/guestlink"
)

// overlays measures how long a node-local disk takes to be made over an image, by how large the guest is to see it: as large as
// the scheduler lets it be on a small machine.
func (b *bench) overlays(ctx context.Context, n int) (figures []figure, err error) {
	quiet, err := b.logSteps(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, quiet()) }()
	for _, size := range []string{"1Gi", "16Gi"} {
		var took []float64
		for i := range max(3, n/4) + 1 { // the first has the image pulled
			vm := b.guest("overlay")
			vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", Image: os.Getenv("LAB_IMAGE_TINY"), Size: new(resource.MustParse(size))}}
			if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning); err != nil {
				return figures, err
			}
			steps, err := b.steps(ctx, vm)
			if err != nil {
				return figures, err
			}
			for _, s := range steps {
				if s.name == "MakeDisk" && i > 0 {
					took = append(took, float64(s.took.Microseconds())/1000)
				}
			}
			if _, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm); err != nil {
				return figures, err
			}
		}
		if len(took) == 0 {
			return figures, errors.New("the agent's log tells of no MakeDisk")
		}
		figures = append(figures, of("overlay_"+strings.ToLower(size)+"b_ms", "ms", 50, "", took))
	}
	return figures, nil
}

const attachedDisk = `<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap' detect_zeroes='unmap'/>` +
	`<source file='` + portsDir + `bench-%[1]d.raw'/><target dev='vd%[2]c' bus='virtio'/><serial>bench-%[1]d</serial>` +
	`<address type='pci' domain='0x0000' bus='0x02' slot='0x%[3]x'/></disk>`

// plugs measures how long a running guest's new disk takes, from the patch of the spec to the status that tells of it, beside
// virsh attach-device of one to a bare domain.
func (b *bench) plugs(ctx context.Context, n int) (figures []figure, err error) {
	n = min(n, 12) // of the 16 disks that a guest can have
	vm := b.guest("plugs")
	if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning); err != nil {
		return nil, err
	}
	if err := errors.Join(b.describe(ctx, vm, "bench"), b.create(ctx, "bench")); err != nil {
		return nil, err
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		_, removed := b.onNode(ctx, "", "sh", "-c", "rm -f "+portsDir+"bench-*")
		err = errors.Join(err, b.destroy(ctx, "bench"), removed)
	}()
	settle() // a kernel that has found its buses
	i, size := 0, resource.MustParse("64Mi")
	figures, err = pair{"plug", 1.25, "virsh attach-device", func() (time.Duration, error) {
		before := vm.DeepCopy()
		vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: fmt.Sprintf("d%d", i), Empty: &v1alpha1.EmptyDisk{}, Size: &size})
		return b.patched(ctx, vm, client.MergeFrom(before), func(now *v1alpha1.VirtualMachine) bool {
			return now.Status.ObservedGeneration >= vm.Generation && len(now.Status.Disks) > i && len(now.Status.PendingChanges) == 0
		})
	}, func() (time.Duration, error) {
		file := fmt.Sprintf("%sbench-%d", portsDir, i)
		device := fmt.Sprintf(attachedDisk, i, 'b'+i, 9+i)
		if _, err := b.onNode(ctx, device, "sh", "-c", fmt.Sprintf("truncate -s 64M %[1]s.raw && chmod 666 %[1]s.raw && cat >%[1]s.xml", file)); err != nil {
			return 0, err
		}
		i++
		began := time.Now()
		_, err := b.onNode(ctx, "", "virsh", "attach-device", "bench", file+".xml", "--live")
		return time.Since(began), err
	}}.measure(n)
	if err != nil {
		return figures, err
	}
	_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	return figures, err
}

// patched changes a VirtualMachine and returns how long it took until it was as wanted, by the API's word.
func (b *bench) patched(ctx context.Context, vm *v1alpha1.VirtualMachine, patch client.Patch, is func(*v1alpha1.VirtualMachine) bool) (time.Duration, error) {
	w, err := b.Watch(ctx, &v1alpha1.VirtualMachineList{}, &client.ListOptions{Namespace: b.ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", vm.Name)})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	if err := b.Patch(ctx, vm, patch); err != nil {
		return 0, err
	}
	for e := range w.ResultChan() {
		if now, ok := e.Object.(*v1alpha1.VirtualMachine); ok && is(now) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("waiting for %s: %w", vm.Name, ctx.Err())
}

// ddToDisk writes 256 MiB to a disk, as what its serial number says, and tells from when to when by the guest's clock. QEMU would
// turn zeros into holes.
const ddToDisk = `tr '\0' x </dev/zero | dd of=/16mib bs=64k count=256 iflag=fullblock 2>/dev/null
for d in /sys/block/vd*; do
	[ "$(cat $d/serial)" = data ] || continue
	read from _ </proc/uptime
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /16mib; done | dd of=/dev/${d##*/} bs=64k conv=fsync 2>/dev/null
	read to _ </proc/uptime
	echo "$from $to" >&2
done`

var diskPath = regexp.MustCompile(`/var/lib/berth/vms/[^']*`)

// disk measures how long a guest takes to write 256 MiB to a node-local disk, beside the same guest without Berth, whose disk
// is the same file once more.
func (b *bench) disk(ctx context.Context, n int) (figures []figure, err error) {
	size := resource.MustParse("1Gi")
	vm := b.guest("writes-disk")
	vm.Spec.Kernel.Image = os.Getenv("LAB_IMAGE_HOSTILE")
	vm.Spec.Kernel.CommandLine += " tools"
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", Empty: &v1alpha1.EmptyDisk{}, Size: &size}}
	if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, hasTools); err != nil {
		return nil, err
	}
	if err := b.describe(ctx, vm, "bench"); err != nil {
		return nil, err
	}
	description, err := b.onNode(ctx, "", "cat", "/run/bench.xml")
	if err != nil {
		return nil, err
	}
	const own = "/var/lib/berth/bench.disk"
	if _, err := b.onNode(ctx, diskPath.ReplaceAllString(description, own), "sh", "-c",
		"cat >/run/bench.xml; cp -p "+diskPath.FindString(description)+" "+own); err != nil {
		return nil, err
	}
	bare, err := b.startDescribed(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		_, removed := b.onNode(ctx, "", "rm", own)
		err = errors.Join(err, b.destroy(ctx, "bench"), removed)
	}()
	figures, err = pair{"disk", 1.05, "the same guest and file under plain libvirt", func() (time.Duration, error) {
		var said strings.Builder
		if err := b.kubectlSays(ctx, &said, "exec", vm.Name, "--", "sh", "-c", ddToDisk); err != nil {
			return 0, err
		}
		return ddTook(said.String())
	}, func() (time.Duration, error) {
		command, err := guestlink.Command{Args: []string{"sh", "-c", ddToDisk}}.Encode()
		if err != nil {
			return 0, err
		}
		bare.said.Reset()
		if _, err := bare.Open(command, bare); err != nil {
			return 0, err
		}
		if err := <-bare.ended; err != nil {
			return 0, err
		}
		return ddTook(bare.said.String())
	}}.measure(max(5, n/2))
	if err != nil {
		return figures, err
	}
	_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	return figures, err
}

// ddTook reads what ddToDisk tells.
func ddTook(said string) (time.Duration, error) {
	var from, to float64
	if _, err := fmt.Sscan(said, &from, &to); err != nil {
		return 0, fmt.Errorf("dd says %q: %w", said, err)
	}
	return time.Duration((to - from) * float64(time.Second)), nil
}
