package agent

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/guest/plan"
)

func TestImagesThatAGuestRequires(t *testing.T) {
	vm := &v1alpha1.VirtualMachine{
		Spec: v1alpha1.VirtualMachineSpec{
			Disks:  []v1alpha1.Disk{{Name: "root", Image: "debian:12"}, {Name: "data", Image: "blank:2"}, {Name: "new", Image: "blank:2"}},
			Kernel: &v1alpha1.Kernel{Image: "linux:6", KernelPath: "/vmlinuz", InitrdPath: "/initrd"},
		},
		Status: v1alpha1.VirtualMachineStatus{Disks: []v1alpha1.DiskStatus{
			{Name: "root", Image: "debian:12", ImageDigest: "sha256:1"}, {Name: "data", Image: "blank:1", ImageDigest: "sha256:2"},
		}},
	}
	want := []pulls.Image{
		{Name: "root", Reference: "debian:12", Digest: "sha256:1"}, // what the guest has had
		{Name: "data", Reference: "blank:2"},                       // it has had another image
		{Name: "new", Reference: "blank:2"},
		{Name: plan.Kernel, Reference: "linux:6", Kernel: "/vmlinuz", Initrd: "/initrd"},
	}
	if diff := cmp.Diff(want, requiredImages(vm)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPullSecretsNeedAShim(t *testing.T) {
	g := &guest{Want: plan.Want{VM: &v1alpha1.VirtualMachine{}}}
	if _, err := keychain(g)(); err != nil {
		t.Errorf("without pull secrets: %v", err)
	}
	g.VM.Spec.ImagePullSecrets = []v1alpha1.LocalReference{{Name: "registry"}}
	if _, err := keychain(g)(); !errors.Is(err, shims.ErrAbsent) {
		t.Errorf("with pull secrets and no shim: %v", err)
	}
}
