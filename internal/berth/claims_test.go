package berth

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var claims = map[string]corev1.PersistentVolumeMode{
	"data": corev1.PersistentVolumeFilesystem, "raw": corev1.PersistentVolumeBlock, "iso": corev1.PersistentVolumeFilesystem,
}

// onClaims has a guest whose disks are claims, of each kind.
func onClaims(s *v1alpha1.VirtualMachineSpec) {
	s.Disks = []v1alpha1.Disk{
		{Name: "data", Image: "registry.example/db:1", Size: new(resource.MustParse("5Gi")), PersistentVolumeClaim: &v1alpha1.DiskClaim{TemplateName: "data"}},
		{Name: "raw", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: "raw"}, Access: v1alpha1.DiskShared},
		{Name: "iso", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: "iso"}, Access: v1alpha1.DiskReadOnly},
	}
	s.VolumeClaimTemplates = []v1alpha1.VolumeClaimTemplate{{Metadata: v1alpha1.VolumeClaimMetadata{Name: "data"}}}
}

// TestUnlikeClaims: a berth that lost a claim's volume, or has it otherwise, is none.
func TestUnlikeClaims(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *corev1.PodSpec, guest *corev1.Container)
		says   string // "" where it is the berth still
	}{
		{"as the API server has it", func(*corev1.PodSpec, *corev1.Container) {}, ""},
		{"one more group", func(s *corev1.PodSpec, _ *corev1.Container) { s.SecurityContext.SupplementalGroups = []int64{5} }, ""},
		{"no mount", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeMounts = guest.VolumeMounts[1:] }, "volumeMounts[disk-data]"},
		{"a mount elsewhere", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeMounts[0].MountPath = "/disks/iso" }, "mountPath"},
		{"a mount of a part", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeMounts[0].SubPath = "a" }, "subPath"},
		{"a mount that is only read", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeMounts[0].ReadOnly = true }, "volumeMounts[disk-data].readOnly"},
		{"a mount that may be written", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeMounts[1].ReadOnly = false }, "volumeMounts[disk-iso].readOnly"},
		{"no device", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeDevices = nil }, "volumeDevices"},
		{"a device elsewhere", func(_ *corev1.PodSpec, guest *corev1.Container) { guest.VolumeDevices[0].DevicePath = "/dev/a" }, "devicePath"},
		{"no volume", func(s *corev1.PodSpec, _ *corev1.Container) { s.Volumes = s.Volumes[1:] }, "volumes[disk-data]"},
		{"another claim", func(s *corev1.PodSpec, _ *corev1.Container) { s.Volumes[0].PersistentVolumeClaim.ClaimName = "other" }, "claimName"},
		{"one more claim", func(s *corev1.PodSpec, guest *corev1.Container) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "disk-x", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "x"}}})
			guest.VolumeMounts = append(guest.VolumeMounts, corev1.VolumeMount{Name: "disk-x", MountPath: "/disks/x"})
		}, "disk-x"},
		{"another group", func(s *corev1.PodSpec, _ *corev1.Container) { s.SecurityContext.FSGroup = new(int64(1)) }, "fsGroup"},
		{"no group", func(s *corev1.PodSpec, _ *corev1.Container) { s.SecurityContext.FSGroup = nil }, "fsGroup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made, err := PodFor(Input{VM: vm(onClaims), Claims: claims, Options: options})
			if err != nil {
				t.Fatal(err)
			}
			pod := inAPI(t, made)
			tt.change(&pod.Spec, &pod.Spec.Containers[0])
			got, err := Unlike(pod, made)
			if err != nil || (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
				t.Errorf("it says %q, want %q: %v", got, tt.says, err)
			}
		})
	}
}

func TestPodForWithoutItsClaim(t *testing.T) {
	_, err := PodFor(Input{VM: vm(onClaims), Options: options})
	if fault.ReasonOf(err) != v1alpha1.ReasonClaimMissing || !strings.Contains(err.Error(), "web-data") {
		t.Errorf("it is made without its claim: %v", err)
	}
}

// TestClaimsAreNotOnTheNode: they bind no guest to it, and take nothing of its storage.
func TestClaimsAreNotOnTheNode(t *testing.T) {
	vm := vm(onClaims)
	if size := localStorage(vm, options); HasLocalDisks(vm) || !size.IsZero() {
		t.Errorf("it has disks of %s on its node", &size)
	}
	for _, tt := range []struct {
		disk v1alpha1.DiskStatus
		want bool
	}{
		{v1alpha1.DiskStatus{Name: "root"}, true},
		{v1alpha1.DiskStatus{Name: "old", Detached: true}, true},
		{v1alpha1.DiskStatus{Name: "tmp", Ephemeral: true}, false},
		{v1alpha1.DiskStatus{Name: "data", ClaimName: "web-data"}, false},
		{v1alpha1.DiskStatus{Name: "gone", UsedClaimUID: "c-1"}, false}, // the spec has it no more
	} {
		if OnNode(tt.disk) != tt.want {
			t.Errorf("%+v is on the node: %t", tt.disk, !tt.want)
		}
	}
}

// TestClaimsGrowInPlace: what a claim grows by, and what becomes of it, changes neither guest nor berth.
func TestClaimsGrowInPlace(t *testing.T) {
	was := recordOf(t, vm(onClaims).Spec)
	for name, tt := range map[string]struct {
		change func(*v1alpha1.VirtualMachineSpec)
		path   string // "" where it is no change
	}{
		"a larger disk":      {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Size = new(resource.MustParse("6Gi")) }, ""},
		"a disk of any size": {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Size = nil }, ""},
		"a template's label": {func(s *v1alpha1.VirtualMachineSpec) {
			s.VolumeClaimTemplates[0].Metadata.Labels = map[string]string{"a": "b"}
		}, ""},
		"no templates":      {func(s *v1alpha1.VirtualMachineSpec) { s.VolumeClaimTemplates = nil }, ""},
		"another retention": {func(s *v1alpha1.VirtualMachineSpec) { s.VolumeClaimRetention = v1alpha1.VolumeClaimDelete }, ""},
		"another claim":     {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[1].PersistentVolumeClaim.ClaimName = "b" }, "disks[raw].persistentVolumeClaim.claimName"},
		"another access":    {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[1].Access = "" }, "disks[raw].access"},
		"another seed":      {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Image = "b" }, "disks[data].image"},
		"a disk of the node's": {func(s *v1alpha1.VirtualMachineSpec) {
			s.Disks[2] = v1alpha1.Disk{Name: "iso", Image: "a", Access: s.Disks[2].Access}
		}, "disks[iso].image"},
	} {
		t.Run(name, func(t *testing.T) {
			changes, err := Changes(was, &vm(onClaims, tt.change).Spec)
			if err != nil || (tt.path == "") != (len(changes) == 0) || tt.path != "" && changes[0].Path != tt.path {
				t.Errorf("changes %+v, want %q: %v", changes, tt.path, err)
			}
		})
	}
}
