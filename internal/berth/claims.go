package berth

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// DiskVolume names the berth's volume of a disk that has a claim.
func DiskVolume(disk string) string { return diskVolumes + disk }

const diskVolumes = "disk-"

// DiskPath is the path of that volume in the berth's container.
func DiskPath(disk string) string { return "/disks/" + disk }

// ClaimName is the name of a disk's claim, "" if it has none.
func ClaimName(vm *v1alpha1.VirtualMachine, d *v1alpha1.Disk) string {
	switch c := d.PersistentVolumeClaim; {
	case c == nil:
		return ""
	case c.TemplateName != "":
		return vm.Name + "-" + c.TemplateName
	default:
		return c.ClaimName
	}
}

// OnNode tells that a disk that exists is on the storage of its node, and so binds its guest to it.
func OnNode(d v1alpha1.DiskStatus) bool {
	return !d.Ephemeral && d.ClaimName == "" && d.UsedClaimUID == ""
}

// addClaims mounts the claims of the guest's disks. Their file systems are the group's, which QEMU is then in.
func addClaims(spec *corev1.PodSpec, in Input) error {
	guest := &spec.Containers[0]
	for i := range in.VM.Spec.Disks {
		d := &in.VM.Spec.Disks[i]
		if d.PersistentVolumeClaim == nil {
			continue
		}
		claim, mode := ClaimName(in.VM, d), in.Claims[d.Name]
		if mode == "" {
			return fault.NewUser(v1alpha1.ReasonClaimMissing, fmt.Errorf("disk %s: there is no PersistentVolumeClaim %s", d.Name, claim))
		}
		volume, path, readOnly := DiskVolume(d.Name), DiskPath(d.Name), d.Access == v1alpha1.DiskReadOnly
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim, ReadOnly: readOnly},
		}})
		if mode == corev1.PersistentVolumeBlock {
			guest.VolumeDevices = append(guest.VolumeDevices, corev1.VolumeDevice{Name: volume, DevicePath: path})
			continue
		}
		guest.VolumeMounts = append(guest.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path, ReadOnly: readOnly})
		spec.SecurityContext.FSGroup = &in.Options.VolumeGroup
		spec.SecurityContext.FSGroupChangePolicy = new(corev1.FSGroupChangeOnRootMismatch)
	}
	return nil
}
