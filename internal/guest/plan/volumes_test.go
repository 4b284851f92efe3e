package plan

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	gib    = 1 << 30
	claim1 = "claim-1"
)

// withClaim is a VirtualMachine whose root disk is a claim, of which the operator has told.
func withClaim(vm *v1alpha1.VirtualMachine) {
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "root", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: "web-root"}}}
	vm.Status.Disks = []v1alpha1.DiskStatus{{
		Name: "root", ClaimName: "web-root", ClaimUID: claim1, Capacity: new(resource.MustParse("1Gi")), VolumeMode: corev1.PersistentVolumeFilesystem,
	}}
}

func seeded(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Image = "registry/web:1" }
func untold(vm *v1alpha1.VirtualMachine) { vm.Status.Disks = nil }
func unbound(vm *v1alpha1.VirtualMachine) {
	vm.Status.Disks[0].Capacity = nil
}
func known(vm *v1alpha1.VirtualMachine) { vm.Status.Disks[0].UsedClaimUID = claim1 }

// waiting is a node whose berth's shim waits for a guest.
func waiting(volumes ...Volume) Have {
	return Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Volumes: volumes}
}

func live(volumes ...Volume) Have {
	return Have{
		Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}, Volumes: volumes,
	}
}

var (
	attachedVolume = Volume{Disk: "root", Claim: claim1}
	madeVolume     = Volume{Disk: "root", Claim: claim1, Made: true, Size: gib, Target: gib, Capacity: gib}
	errVolume      = fault.NewUser(v1alpha1.ReasonVolumeNotWritable, errors.New("disk.img has mode 0600"))
)

func changed(v Volume, change func(*Volume)) Volume {
	change(&v)
	return v
}

func TestVolumes(t *testing.T) {
	names := func(next Next) (list []string) {
		for _, s := range next.Steps {
			list = append(list, Name(s))
		}
		return list
	}
	start := []string{"CreateDomain", "MoveToCgroup", "ConnectNICs", "WriteSeed", "HandOver", "Resume", "NotifyShim"}
	noContainer := waiting()
	noContainer.Container, noContainer.Shim = ContainerAbsent, nil
	left := waiting(madeVolume)
	left.Container, left.Shim = ContainerDead, nil
	missing := waiting()
	missing.Images = map[string]Image{"root": {State: ImageMissing}}
	ended := live(madeVolume)
	ended.Domain, ended.Process, ended.Exit = DomainAbsent, ProcessNone, &Exit{Reason: v1alpha1.ReasonPoweredOff}
	pulled := func(h Have) Have {
		h.Images = map[string]Image{"root": {State: ImageReady, Digest: "sha256:1"}}
		return h
	}
	for name, tt := range map[string]struct {
		vm    *v1alpha1.VirtualMachine
		have  Have
		steps []string
		wake  time.Duration
		says  v1alpha1.Reason // in DisksReady
	}{
		"nothing before the operator has told of the claim": {vm(withClaim, untold), waiting(), nil, 0, v1alpha1.ReasonClaimPending},
		"nor before the claim's capacity is known":          {vm(withClaim, unbound), waiting(), nil, 0, v1alpha1.ReasonClaimPending},
		"nor before the container is there":                 {vm(withClaim), noContainer, nil, 0, v1alpha1.ReasonDisksReady},
		"then it is attached, and a disk made":              {vm(withClaim), waiting(), []string{"AttachVolumes", "MakeVolumes"}, pullProgress, v1alpha1.ReasonDisksReady},
		"again, if it was of another claim": {
			vm(withClaim), waiting(changed(madeVolume, func(v *Volume) { v.Claim = "claim-0" })),
			[]string{"AttachVolumes", "MakeVolumes"},
			pullProgress, v1alpha1.ReasonDisksReady,
		},
		"an image comes first":             {vm(withClaim, seeded), missing, []string{"PullImages"}, pullProgress, v1alpha1.ReasonPullingImage},
		"and only to one that was not had": {vm(withClaim, seeded, known), waiting(), []string{"AttachVolumes", "MakeVolumes"}, pullProgress, v1alpha1.ReasonDisksReady},
		"a worker that was killed with its agent is followed by another": {
			vm(withClaim), waiting(attachedVolume), []string{"MakeVolumes"}, pullProgress, v1alpha1.ReasonDisksReady,
		},
		"one that works is waited for": {
			vm(withClaim, seeded), pulled(waiting(changed(attachedVolume, func(v *Volume) { v.Working, v.Done, v.Total = true, gib/2, gib }))),
			nil, pullProgress, v1alpha1.ReasonSeeding,
		},
		"one that failed rests": {
			vm(withClaim), waiting(changed(attachedVolume, func(v *Volume) { v.Err, v.Retry = errVolume, now.Add(7*time.Second) })),
			nil, 7 * time.Second, v1alpha1.ReasonVolumeNotWritable,
		},
		"and is followed by another": {
			vm(withClaim), waiting(changed(attachedVolume, func(v *Volume) { v.Err, v.Retry = errVolume, now })),
			[]string{"MakeVolumes"},
			pullProgress, v1alpha1.ReasonVolumeNotWritable,
		},
		"once the disk is made the guest starts": {vm(withClaim), waiting(madeVolume), start, 0, v1alpha1.ReasonDisksReady},
		"with what has grown since": {
			vm(withClaim), waiting(changed(madeVolume, func(v *Volume) { v.Target = 2 * gib })),
			append([]string{"CreateDomain", "MoveToCgroup", "GrowDisk"}, start[2:]...), 0, v1alpha1.ReasonDisksReady,
		},
		"a claim that grows is looked at": {
			vm(withClaim), live(changed(madeVolume, func(v *Volume) { v.Capacity = gib / 2 })), []string{"MakeVolumes"}, pullProgress, v1alpha1.ReasonDisksReady,
		},
		"as is one of which the spec wants more": {
			vm(withClaim, func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Size = new(resource.MustParse("2Gi")) }),
			live(madeVolume),
			[]string{"MakeVolumes"},
			pullProgress, v1alpha1.ReasonDisksReady,
		},
		"and told if it cannot have that": {
			vm(withClaim, func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Size = new(resource.MustParse("2Gi")) }),
			live(changed(madeVolume, func(v *Volume) {
				v.Err, v.Retry = fault.NewUser(v1alpha1.ReasonVolumeTooSmall, errors.New("it holds 1 GiB")), now.Add(3*time.Second)
			})), nil, 3 * time.Second, v1alpha1.ReasonVolumeTooSmall,
		},
		"until it asks for that no more": {
			vm(withClaim), live(changed(madeVolume, func(v *Volume) {
				v.Err = fault.NewUser(v1alpha1.ReasonVolumeTooSmall, errors.New("it holds 1 GiB"))
			})), nil, 0, v1alpha1.ReasonDisksReady,
		},
		"once at a time": {
			vm(withClaim), live(changed(madeVolume, func(v *Volume) { v.Capacity, v.Working = gib/2, true })), nil, 0, v1alpha1.ReasonDisksReady,
		},
		"and the guest is told":                 {vm(withClaim), live(changed(madeVolume, func(v *Volume) { v.Target = 2 * gib })), []string{"GrowDisk"}, 0, v1alpha1.ReasonDisksReady},
		"of no disk that would shrink":          {vm(withClaim), live(changed(madeVolume, func(v *Volume) { v.Target = gib / 2 })), nil, 0, v1alpha1.ReasonDisksReady},
		"at its end volumes go before the shim": {vm(withClaim), ended, []string{"CleanUp", "EndShim"}, 0, v1alpha1.ReasonDisksReady},
		"without its container they go":         {vm(withClaim), left, []string{"CleanUp"}, 0, v1alpha1.ReasonDisksReady},
		"also those of nobody":                  {nil, left, []string{"CleanUp"}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := Want{VM: tt.vm}
			if tt.vm != nil {
				w = resolved(t, Want{VM: tt.vm, Berth: fresh()})
			}
			next, _ := Decide(w, tt.have, Memory{}, now)
			if diff := cmp.Diff(tt.steps, names(next)); diff != "" || next.Wake != tt.wake {
				t.Errorf("wakes in %v, want %v (-want +got):\n%s", next.Wake, tt.wake, diff)
			}
			if tt.vm == nil {
				return
			}
			s, _ := Report(w, tt.have, Memory{}, nil, now)
			if got := condition.Reason(s.Conditions, v1alpha1.ConditionDisksReady); got != tt.says {
				t.Errorf("DisksReady says %s, want %s: %+v", got, tt.says, s.Conditions)
			}
		})
	}
}

func TestVolumesAreProofOfNothingLeft(t *testing.T) {
	w := resolved(t, Want{VM: vm(withClaim), Berth: fresh(ending, used)})
	h := waiting(madeVolume)
	h.Container, h.Shim = ContainerDead, nil
	if released(w, h) != "" {
		t.Error("the berth is released while a volume is attached")
	}
	h.Volumes = nil
	if released(w, h) != w.Berth.UID {
		t.Error("the berth is not released")
	}
}

func TestVolumeStatus(t *testing.T) {
	size := func(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
	had := v1alpha1.DiskStatus{Name: "root", Size: size(gib), UsedClaimUID: claim1, Seeded: true, Image: "registry/web:1", ImageDigest: "sha256:1"}
	told := func(vm *v1alpha1.VirtualMachine) {
		operators := vm.Status.Disks[0]
		vm.Status.Disks[0] = had
		s := &vm.Status.Disks[0]
		s.ClaimName, s.ClaimUID, s.Capacity, s.VolumeMode = operators.ClaimName, operators.ClaimUID, operators.Capacity, operators.VolumeMode
	}
	replaced := func(vm *v1alpha1.VirtualMachine) { vm.Status.Disks[0].ClaimUID = "claim-2" }
	for name, tt := range map[string]struct {
		vm   *v1alpha1.VirtualMachine
		have Have
		want []v1alpha1.DiskStatus
	}{
		"nothing before there is a disk":  {vm(withClaim), waiting(attachedVolume), nil},
		"a disk":                          {vm(withClaim), live(madeVolume), []v1alpha1.DiskStatus{{Name: "root", Size: size(gib), UsedClaimUID: claim1}}},
		"one from an image":               {vm(withClaim, seeded), Have{Volumes: []Volume{changed(madeVolume, func(v *Volume) { v.Seed = "sha256:1" })}}, []v1alpha1.DiskStatus{had}},
		"what was had, on whatever node":  {vm(withClaim, seeded, told), waiting(), []v1alpha1.DiskStatus{had}},
		"and not of a claim that is gone": {vm(withClaim, seeded, told, replaced), waiting(), nil},
		"how far it is": {
			vm(withClaim, seeded), waiting(changed(attachedVolume, func(v *Volume) { v.Done, v.Total = gib/2, gib })),
			[]v1alpha1.DiskStatus{{Name: "root", Progress: &v1alpha1.DiskProgress{Doing: v1alpha1.DiskSeeding, Done: size(gib / 2), Total: size(gib)}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := resolved(t, Want{VM: tt.vm, Berth: fresh()})
			if diff := cmp.Diff(tt.want, diskStatus(w, tt.have)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if owned := ownedDisks(&vm(withClaim).Status); owned != nil {
		t.Errorf("of what the operator tells, the agent's part is %+v", owned)
	}
	if owned := ownedDisks(&vm(withClaim, told).Status); len(owned) != 1 || owned[0] != had {
		t.Errorf("the agent's part is %+v", owned)
	}
}

func TestImagesOfClaims(t *testing.T) {
	for name, tt := range map[string]struct {
		vm   *v1alpha1.VirtualMachine
		want int
	}{
		"a blank claim needs none":    {vm(withClaim), 0},
		"one to be seeded needs its":  {vm(withClaim, seeded), 1},
		"one that was had needs none": {vm(withClaim, seeded, known), 0},
		"a blank disk needs none": {vm(func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Disks[0] = v1alpha1.Disk{Name: "root", Empty: &v1alpha1.EmptyDisk{}}
		}), 0},
		"one over an image does, as is": {vm(), 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := resolved(t, Want{VM: tt.vm})
			if got := w.Machine.Images(); len(got) != tt.want {
				t.Errorf("needs %+v", got)
			}
		})
	}
}
