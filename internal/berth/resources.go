package berth

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const mebi = 1 << 20

// Cost of a guest beyond its memory, in bytes; measured, docs/resources.md has the figures.
const (
	shimMemory     = 16 * mebi
	qemuMemory     = 96 * mebi
	memoryPerVCPU  = 8 * mebi
	memoryPerDisk  = 8 * mebi
	pageTableShare = 256 // one byte of page tables and device state for so many of the guest's
	// EmulationCache is QEMU's cache of translated code on hosts that emulate.
	EmulationCache = 128 * mebi
)

// VCPUs is the number of the guest's virtual processors.
func VCPUs(vm *v1alpha1.VirtualMachine) int32 {
	c := vm.Spec.CPU
	return max(c.Cores, 1) * max(c.Sockets, 1) * max(c.Threads, 1)
}

// Memory is what a berth requests and is limited to, in bytes: the guest's memory and what QEMU and the shim need.
func Memory(vm *v1alpha1.VirtualMachine, emulation bool) int64 {
	guest := vm.Spec.Memory.Size.Value()
	total := guest + shimMemory + qemuMemory + int64(VCPUs(vm))*memoryPerVCPU +
		int64(len(vm.Spec.Disks))*memoryPerDisk + guest/pageTableShare
	if emulation {
		total += EmulationCache
	}
	return total
}

// resources are the berth's. CPU has no limit: vCPUs compete by their requests.
func resources(vm *v1alpha1.VirtualMachine, o Options) corev1.ResourceRequirements {
	memory := *resource.NewQuantity(Memory(vm, o.Emulation), resource.BinarySI)
	cpu := *resource.NewMilliQuantity(o.CPURequest.MilliValue()*int64(VCPUs(vm)), resource.DecimalSI)
	requests := corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}
	if local := localStorage(vm); !local.IsZero() {
		requests[corev1.ResourceEphemeralStorage] = local
	}
	return corev1.ResourceRequirements{
		Requests: requests,
		Limits:   corev1.ResourceList{corev1.ResourceMemory: memory},
	}
}

// localStorage is what the guest's disks may grow to on the node, as far as the spec says it.
func localStorage(vm *v1alpha1.VirtualMachine) resource.Quantity {
	var sum resource.Quantity
	for _, d := range vm.Spec.Disks {
		if d.Size != nil {
			sum.Add(*d.Size)
		}
	}
	return sum
}

// KeepsDisks is true when the guest has disks that outlive its berth, on the node where they were made.
func KeepsDisks(vm *v1alpha1.VirtualMachine) bool {
	for _, d := range vm.Spec.Disks {
		if !d.Ephemeral {
			return true
		}
	}
	return false
}
