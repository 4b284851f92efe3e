package virtualmachine

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

const claimUID = "5f9d1f0e-5a51-4c2c-a3f0-3a0c6a1d2b11"

// onClaim gives a VirtualMachine a second disk on a claim, of which the operator has told.
func onClaim(mode corev1.PersistentVolumeMode) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: "web-data"}})
		vm.Status.Disks = append(vm.Status.Disks, v1alpha1.DiskStatus{
			Name: "data", ClaimName: "web-data", ClaimUID: claimUID, Capacity: new(resource.MustParse("1Gi")), VolumeMode: mode,
		})
	}
}

// TestVolumesOfAGuest: a claim's volume is attached before QEMU begins, grows under it, and is gone before the shim is.
func TestVolumesOfAGuest(t *testing.T) {
	for _, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock} {
		t.Run(string(mode), func(t *testing.T) {
			w, n := one(t, onClaim(mode))
			n.sync()
			if len(n.host.QEMUs(string(vmUID))) > 0 {
				t.Fatal("QEMU is begun before the container has its volume")
			}
			n.runContainer()
			n.host.MountVolume(string(n.here().UID), berth.DiskPath("data"), "a volume", mode == corev1.PersistentVolumeBlock)
			n.sync() // has a worker make the disk, which wakes us
			n.sync()
			if q := n.qemu(t); q.State != libvirtd.Running {
				t.Fatalf("QEMU is %+v", q)
			}
			if granted := n.host.HasGroup(1879113728); granted != (mode == corev1.PersistentVolumeFilesystem) {
				t.Errorf("the volumes' group may use KVM: %t", granted)
			}
			attached, err := n.host.Volumes.Attached(string(vmUID))
			if err != nil || len(attached) != 1 || attached[0].Claim != claimUID {
				t.Fatalf("attached is %+v, %v", attached, err)
			}
			disk := func() v1alpha1.DiskStatus {
				for _, d := range w.cluster.vm.Status.Disks {
					if d.Name == "data" {
						return d
					}
				}
				return v1alpha1.DiskStatus{}
			}
			if d := disk(); d.UsedClaimUID != claimUID || d.Size == nil || d.Size.Value() != 1<<30 {
				t.Errorf("the status says %+v", d)
			}

			for i := range w.cluster.vm.Status.Disks {
				if d := &w.cluster.vm.Status.Disks[i]; d.Name == "data" {
					d.ClaimName, d.ClaimUID, d.VolumeMode, d.Capacity = "web-data", claimUID, mode, new(resource.MustParse("2Gi"))
				}
			}
			n.sync()
			n.sync()
			if size := n.host.DiskSize(string(vmUID), attached[0].File); size != 2<<30 {
				t.Errorf("QEMU was told of %d bytes", size)
			}

			n.terminate()
			n.host.PowerOff(string(vmUID))
			n.sync()
			if left, err := n.host.Volumes.Attached(string(vmUID)); len(left) > 0 || err != nil {
				t.Errorf("still attached are %+v, %v", left, err)
			}
			if n.containerAlive() {
				t.Error("the shim was not told to end")
			}
		})
	}
}
