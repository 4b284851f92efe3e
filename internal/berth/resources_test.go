package berth

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestLocalStorage: every disk counts, also one whose spec has no size.
func TestLocalStorage(t *testing.T) {
	o := options
	o.UnsizedDisk = resource.MustParse("10Gi")
	made := func(image, size string) v1alpha1.DiskStatus {
		return v1alpha1.DiskStatus{Name: "root", Image: image, Size: new(resource.MustParse(size))}
	}
	for _, tt := range []struct {
		name  string
		disks []v1alpha1.Disk
		has   []v1alpha1.DiskStatus
		want  string // of the disks alone
	}{
		{"no disk", nil, nil, "0"},
		{"a disk with a size", []v1alpha1.Disk{{Name: "root", Image: "a", Size: new(resource.MustParse("3Gi"))}}, nil, "3Gi"},
		{"one without", []v1alpha1.Disk{{Name: "root", Image: "a"}}, nil, "10Gi"},
		{"an ephemeral one without", []v1alpha1.Disk{{Name: "root", Image: "a", Ephemeral: true}}, nil, "10Gi"},
		{"both", []v1alpha1.Disk{{Name: "root", Image: "a"}, {Name: "data", Image: "a", Size: new(resource.MustParse("3Gi"))}}, nil, "13Gi"},
		{"a CD-ROM", []v1alpha1.Disk{{Name: "cd", Type: v1alpha1.DiskTypeCDROM, Image: "a"}}, nil, "0"},
		{"one that was made", []v1alpha1.Disk{{Name: "root", Image: "a"}}, []v1alpha1.DiskStatus{made("a", "20Gi")}, "20Gi"},
		{"one that was made of another image", []v1alpha1.Disk{{Name: "root", Image: "b"}}, []v1alpha1.DiskStatus{made("a", "1Gi")}, "10Gi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := vm(func(s *v1alpha1.VirtualMachineSpec) { s.Disks = tt.disks })
			vm.Status.Disks = tt.has
			r := resources(vm, o)
			want := resource.MustParse(tt.want)
			request, limit := r.Requests[corev1.ResourceEphemeralStorage], r.Limits[corev1.ResourceEphemeralStorage]
			if request.Value() != want.Value()+logRequest || limit.Value() != want.Value()+logLimit {
				t.Errorf("request %s, limit %s", &request, &limit)
			}
		})
	}
}

// TestHasLocalDisks: also one that the spec has no more is kept on its node.
func TestHasLocalDisks(t *testing.T) {
	cdrom := v1alpha1.Disk{Name: "cd", Type: v1alpha1.DiskTypeCDROM, Image: "a"}
	for _, tt := range []struct {
		name string
		disk v1alpha1.Disk
		has  []v1alpha1.DiskStatus
		want bool
	}{
		{"a layer", v1alpha1.Disk{Name: "root", Image: "a"}, nil, true},
		{"an ephemeral one", v1alpha1.Disk{Name: "root", Image: "a", Ephemeral: true}, nil, false},
		{"a CD-ROM", cdrom, []v1alpha1.DiskStatus{{Name: "cd", Image: "a", Ephemeral: true}}, false},
		{"one that is detached", cdrom, []v1alpha1.DiskStatus{{Name: "old", Detached: true}}, true},
	} {
		vm := vm(func(s *v1alpha1.VirtualMachineSpec) { s.Disks = []v1alpha1.Disk{tt.disk} })
		vm.Status.Disks = tt.has
		if got := HasLocalDisks(vm); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
		if stays := len(tolerations(vm)) > len(vm.Spec.Tolerations); stays != tt.want {
			t.Errorf("%s: its berth waits for its node: %t", tt.name, stays)
		}
	}
}

// TestDisplayMemory: who has no display pays for none, so that one comes with a new berth.
func TestDisplayMemory(t *testing.T) {
	without := vm()
	with := vm(func(s *v1alpha1.VirtualMachineSpec) { s.Display = &v1alpha1.Display{Type: v1alpha1.DisplayVGA} })
	if more := Memory(with, false) - Memory(without, false); more != displayMemory {
		t.Errorf("a display takes %d bytes", more)
	}
	record, err := Record(&without.Spec)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := Outdated(record, &with.Spec)
	if err != nil || len(changes) != 1 {
		t.Errorf("%+v, %v", changes, err)
	}
}

// TestResourcesAreStated: a LimitRange fills in what is not stated, and refuses a request above a limit of its own.
func TestResourcesAreStated(t *testing.T) {
	o := options
	o.CPURequest = resource.MustParse("5") // more than a vCPU can use
	r := resources(vm(everything), o)
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		request, limit := r.Requests[name], r.Limits[name]
		if request.IsZero() || limit.Cmp(request) < 0 {
			t.Errorf("%s: request %s, limit %s", name, &request, &limit)
		}
	}
	if limit := r.Limits.Cpu(); limit.Value() != 5 {
		t.Errorf("4 vCPUs may use %s", limit)
	}
}
