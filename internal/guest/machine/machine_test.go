package machine

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/domain"
)

const uid = types.UID("8f9c1d2e-0000-4000-8000-000000000001")

func TestOf(t *testing.T) {
	size, userData := resource.MustParse("20Gi"), "#cloud-config"
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: uid},
		Spec: v1alpha1.VirtualMachineSpec{
			CPU: v1alpha1.CPU{Sockets: 1, Cores: 2, Threads: 1, Model: "host-model"}, Memory: v1alpha1.Memory{Size: resource.MustParse("2Gi")},
			Disks: []v1alpha1.Disk{
				{Name: "root", Image: "debian:12", Size: &size}, {Name: "data", Image: "blank:2"}, {Name: "scratch", Image: "blank:2", Ephemeral: true},
			},
			Kernel:            &v1alpha1.Kernel{Image: "linux:6", KernelPath: "/vmlinuz", InitrdPath: "/initrd", CommandLine: "quiet"},
			Networks:          []v1alpha1.Network{{Name: "default", Pod: &v1alpha1.PodNetwork{}}},
			CloudInit:         &v1alpha1.CloudInit{UserData: &userData},
			SSHAuthorizedKeys: []string{"ssh-ed25519 AAAA"},
			ImagePullSecrets:  []v1alpha1.LocalReference{{Name: "registry"}},
		},
		Status: v1alpha1.VirtualMachineStatus{Disks: []v1alpha1.DiskStatus{
			{Name: "root", Image: "debian:12", ImageDigest: "sha256:1"}, {Name: "data", Image: "blank:1", ImageDigest: "sha256:2"},
		}, Kernel: &v1alpha1.KernelStatus{Image: "linux:6", ImageDigest: "sha256:3"}},
	}
	on := Host{Acceleration: v1alpha1.AccelerationEmulation, GuestSubnet: netip.MustParsePrefix("10.0.2.0/30")}
	record, err := berth.Record(&vm.Spec)
	if err != nil {
		t.Fatal(err)
	}
	want := Machine{
		UID: uid, Namespace: "shop", Name: "web", Record: record,
		CPU: domain.CPU{Sockets: 1, Cores: 2, Threads: 1, Model: "host-model"}, Memory: 2 << 30,
		Acceleration: v1alpha1.AccelerationEmulation, TranslationCache: berth.EmulationCache,
		Kernel: &Kernel{Image: Image{For: ForKernel, Reference: "linux:6", Digest: "sha256:3", Kernel: "/vmlinuz", Initrd: "/initrd"}, CommandLine: "quiet"},
		Disks: []Disk{
			{Name: "root", Image: Image{For: "root", Reference: "debian:12", Digest: "sha256:1"}, Size: 20 << 30}, // what the guest has had
			{Name: "data", Image: Image{For: "data", Reference: "blank:2"}},                                       // it has had another image
			{Name: "scratch", Image: Image{For: "scratch", Reference: "blank:2"}, Ephemeral: true},
		},
		NICs: []NIC{{
			Name: "default", Tap: berth.TapName(uid, "default"),
			Address: netip.MustParsePrefix("10.0.2.2/30"), Gateway: netip.MustParseAddr("10.0.2.1"),
		}},
		Seed:        &Seed{SSHAuthorizedKeys: []string{"ssh-ed25519 AAAA"}, UserData: &userData},
		PullSecrets: []types.NamespacedName{{Namespace: "shop", Name: "registry"}},
	}
	got, err := Of(vm, on)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	needs := []Image{want.Disks[0].Image, want.Disks[1].Image, want.Disks[2].Image, want.Kernel.Image}
	if diff := cmp.Diff(needs, got.Images()); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
}

// TestGuestTools: they are for guests that boot from a disk, and their seed is for those that are offered them.
func TestGuestTools(t *testing.T) {
	disk := v1alpha1.VirtualMachineSpec{Disks: []v1alpha1.Disk{{Name: "root", Image: "debian:12"}}}
	with := func(edit func(*v1alpha1.VirtualMachineSpec)) v1alpha1.VirtualMachineSpec {
		s := *disk.DeepCopy()
		edit(&s)
		return s
	}
	for name, tt := range map[string]struct {
		spec    v1alpha1.VirtualMachineSpec
		tools   bool
		seed    bool
		implied bool
	}{
		"a plain guest":            {disk, true, true, true},
		"one that is offered them": {with(func(s *v1alpha1.VirtualMachineSpec) { s.GuestTools = v1alpha1.GuestToolsOffered }), true, true, true},
		"one that is not":          {with(func(s *v1alpha1.VirtualMachineSpec) { s.GuestTools = v1alpha1.GuestToolsNone }), false, false, false},
		"one with a key":           {with(func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{"k"} }), true, true, false},
		"one with cloud-init data": {with(func(s *v1alpha1.VirtualMachineSpec) { s.CloudInit = &v1alpha1.CloudInit{UserData: new("x")} }), true, true, false},
		"and without tools": {with(func(s *v1alpha1.VirtualMachineSpec) {
			s.CloudInit, s.GuestTools = &v1alpha1.CloudInit{UserData: new("x")}, v1alpha1.GuestToolsNone
		}), false, true, false},
		"one that boots a kernel": {with(func(s *v1alpha1.VirtualMachineSpec) { s.Kernel = &v1alpha1.Kernel{Image: "k"} }), false, false, false},
		"a kernel with a key": {with(func(s *v1alpha1.VirtualMachineSpec) {
			s.Kernel, s.SSHAuthorizedKeys = &v1alpha1.Kernel{Image: "k"}, []string{"k"}
		}), false, true, false},
		"one that has nothing": {v1alpha1.VirtualMachineSpec{}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Of(&v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{UID: uid}, Spec: tt.spec}, Host{})
			if err != nil {
				t.Fatal(err)
			}
			if got.Tools != tt.tools || (got.Seed != nil) != tt.seed || got.Seed != nil && got.Seed.Implied != tt.implied {
				t.Errorf("tools: %t, seed: %+v", got.Tools, got.Seed)
			}
		})
	}
}

func TestDisplay(t *testing.T) {
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{UID: uid}}
	for _, want := range []v1alpha1.DisplayType{"", v1alpha1.DisplayVGA, v1alpha1.DisplayVirtio} {
		if want != "" {
			vm.Spec.Display = &v1alpha1.Display{Type: want}
		}
		got, err := Of(vm, Host{})
		if err != nil || got.Display != want || len(got.ReservedPorts()) != min(len(want), 1) {
			t.Errorf("%q: %q with ports %v, %v", want, got.Display, got.ReservedPorts(), err)
		}
	}
}

func TestLeast(t *testing.T) {
	got, err := Of(&v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{UID: uid}}, Host{Acceleration: v1alpha1.AccelerationKVM})
	if err != nil {
		t.Fatal(err)
	}
	if got.Kernel != nil || got.Seed != nil || len(got.Images()) > 0 || got.TranslationCache != 0 {
		t.Errorf("a VirtualMachine that asks for nothing is %+v", got)
	}
}
