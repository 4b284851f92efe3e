package berth

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const mebi = 1 << 20

// What a berth writes to its node's disk beside the guest's: what it requests for its log, and what its log may have. The
// limit is stated, or a LimitRange's default could be less than what the disks request.
const (
	logRequest = 64 * mebi
	logLimit   = 1024 * mebi
)

// Cost of a guest beyond its memory, in bytes; measured, docs/resources.md has the figures.
const (
	shimMemory    = 16 * mebi // with all its sessions stuck, and their windows full
	execMemory    = (maxCommands + maxProbes) * mebi
	qemuMemory    = 96 * mebi
	memoryPerVCPU = 8 * mebi
	memoryPerDisk = 8 * mebi
	// displayMemory is the card's 16 MiB, what VNC compares it with, and 4 MiB for what is on its way to each of 8 viewers.
	displayMemory  = 64 * mebi
	pageTableShare = 256        // one byte of page tables and device state for so many of the guest's
	EmulationCache = 128 * mebi // QEMU's cache of translated code on hosts that emulate
)

// Each command that runs in the guest has a client of it in the berth's container, of at most 1 MiB of its own: so many by
// pods/exec, and so many of kubelet's probes. internal/shim/guest takes no more.
const (
	maxCommands = 32
	maxProbes   = 4
)

// VCPUs is the number of the guest's virtual processors.
func VCPUs(vm *v1alpha1.VirtualMachine) int32 {
	c := vm.Spec.CPU
	return max(c.Cores, 1) * max(c.Sockets, 1) * max(c.Threads, 1)
}

// Memory is what a berth requests and is limited to, in bytes: the guest's memory and what QEMU and the shim need.
func Memory(vm *v1alpha1.VirtualMachine, emulation bool) int64 {
	guest := vm.Spec.Memory.Size.Value()
	total := guest + shimMemory + execMemory + qemuMemory + int64(VCPUs(vm))*memoryPerVCPU +
		int64(len(vm.Spec.Disks))*memoryPerDisk + guest/pageTableShare
	if vm.Spec.Display != nil {
		total += displayMemory
	}
	if emulation {
		total += EmulationCache
	}
	return total
}

// resources are the berth's. All are stated, or the defaults of a LimitRange, which nobody sees, would throttle or refuse a
// guest. The limit of CPU is more than vCPUs can use: a core for QEMU's own threads. vCPUs compete by their requests.
func resources(vm *v1alpha1.VirtualMachine, o Options) corev1.ResourceRequirements {
	memory := *resource.NewQuantity(Memory(vm, o.Emulation), resource.BinarySI)
	vcpus, disks := int64(VCPUs(vm)), localStorage(vm, o)
	list := func(milliCPU, log int64) corev1.ResourceList {
		storage := disks.DeepCopy()
		storage.Add(*resource.NewQuantity(log, resource.BinarySI))
		return corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewMilliQuantity(milliCPU, resource.DecimalSI), corev1.ResourceMemory: memory,
			corev1.ResourceEphemeralStorage: storage,
		}
	}
	limit := (vcpus + 1) * 1000
	return corev1.ResourceRequirements{Requests: list(min(o.CPURequest.MilliValue()*vcpus, limit), logRequest), Limits: list(limit, logLimit)}
}

// localStorage is what the guest's disks may grow to on the node.
func localStorage(vm *v1alpha1.VirtualMachine, o Options) (sum resource.Quantity) {
	for _, d := range vm.Spec.Disks {
		if d.PersistentVolumeClaim == nil && d.Type != v1alpha1.DiskTypeCDROM {
			sum.Add(diskSize(vm, d, o))
		}
	}
	return sum
}

func diskSize(vm *v1alpha1.VirtualMachine, d v1alpha1.Disk, o Options) resource.Quantity {
	if d.Size != nil {
		return *d.Size
	}
	for _, has := range vm.Status.Disks {
		if has.Name == d.Name && has.Image == d.ImageName() && has.Size != nil { // a tag that moves does not change it
			return *has.Size
		}
	}
	return o.UnsizedDisk
}

// HasLocalDisks is true when the guest has disks that outlive its berth, on the node where they were made: those of its spec,
// and those that its node keeps though the spec has them no more.
func HasLocalDisks(vm *v1alpha1.VirtualMachine) bool {
	return slices.ContainsFunc(vm.Status.Disks, OnNode) || slices.ContainsFunc(vm.Spec.Disks, func(d v1alpha1.Disk) bool {
		return !d.Ephemeral && d.PersistentVolumeClaim == nil && d.Type != v1alpha1.DiskTypeCDROM
	})
}
