package machine

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/domain"
)

// Machine is one guest as it is to be.
type Machine struct {
	UID             types.UID
	Namespace, Name string
	// Record is the berth.Record of the spec.
	Record string
	CPU    domain.CPU
	// Memory is in bytes.
	Memory       int64
	Acceleration v1alpha1.Acceleration
	// TranslationCache is as in domain.Guest.
	TranslationCache int64
	// Kernel is nil if the guest boots from its disks.
	Kernel *Kernel
	// Disks are in boot order.
	Disks []Disk
	NICs  []NIC
	// Seed is nil if the guest gets no cloud-init data.
	Seed *Seed
	// Ignition is nil if it gets none for that.
	Ignition *v1alpha1.Ignition
	// Tools: it gets the disk with the guest program.
	Tools bool
	// Group is the gid that QEMU needs for the claims' file systems, which is the berth's fsGroup; 0 for none.
	Group int64
	// Display is the type of its screen; "" if it has none.
	Display v1alpha1.DisplayType
	// PullSecrets are the Secrets for its images.
	PullSecrets []types.NamespacedName
}

// Image is an image that a guest needs.
type Image struct {
	// For is the disk's name, ForKernel for the kernel's.
	For string
	// Reference is as in the spec.
	Reference string
	// Source is where one comes from that the spec names by a VirtualMachineImage, and Named the UID of that: whom its node
	// has it for may have it. Both are "" of others, and while it is not resolved.
	Source string
	Named  types.UID
	// Digest pins it: to what the guest has had of it, or to what the reference meant when it was resolved. "" is that
	// neither is known.
	Digest string
	// Pull is the spec's imagePullPolicy: Always has the registry asked what the reference means though the node knows, while
	// Digest is "", and Never has it not pulled.
	Pull corev1.PullPolicy
	// Kernel and Initrd are paths in it; both are "" if it is a disk's.
	Kernel, Initrd string
}

// From is where it comes from.
func (i Image) From() string { return cmp.Or(i.Source, i.Reference) }

// Unresolved: the spec names it by a VirtualMachineImage of which nothing is known yet.
func (i Image) Unresolved() (name string, is bool) {
	name, is = strings.CutPrefix(i.Reference, v1alpha1.ImagePrefix)
	return name, is && i.Source == ""
}

// ForKernel is what the kernel's image is for. No disk has that name.
const ForKernel = ""

// Kernel is a kernel that is booted directly.
type Kernel struct {
	Image       Image
	CommandLine string
}

// Disk is a disk of a guest, as it is to be or as it is.
type Disk struct {
	Name string
	// Image has no Reference if the disk begins blank.
	Image Image
	// Size is what the guest sees, in bytes; 0 asks for the image's own, if that is at most MaxSize.
	Size, MaxSize int64
	// Ephemeral: it is made anew at each start, as a CDROM is, which is its image, or an empty drive.
	Ephemeral, CDROM bool
	// Path is that of one that is on the node's storage.
	Path string
	// Bus, Cache, Serial and IOThread are as in domain.Disk.
	Bus      v1alpha1.DiskBus
	Cache    v1alpha1.DiskCache
	Serial   string
	IOThread bool
	Limits   domain.Limits
	// Claim is the PersistentVolumeClaim that has it; nil for the node's own storage.
	Claim *Claim
}

// Claim is a PersistentVolumeClaim that has a disk, as far as the operator has told of it.
type Claim struct {
	// UID and Capacity, in bytes, are zero before.
	UID      types.UID
	Capacity int64
	// Block: its volume is a block device, and not a file system.
	Block bool
	// ReadOnly: guests only read it. Shared: several write it.
	ReadOnly, Shared bool
	// Used: the guest has had its disk there, which is not seeded again.
	Used bool
}

// NIC is a network interface of a guest.
type NIC struct {
	Name string // in the spec
	Tap  string // on the host
	// Address is the guest's, Gateway the berth's.
	Address netip.Prefix
	Gateway netip.Addr
}

// Seed is what cloud-init gets.
type Seed struct {
	// Implied: nobody asked for it, and it does no more than to start the guest program.
	Implied           bool
	SSHAuthorizedKeys []string
	// UserData and NetworkData are nil if there are none.
	UserData, NetworkData *string
	// UserDataSecret and NetworkDataSecret have them instead; nil if there are none.
	UserDataSecret, NetworkDataSecret *v1alpha1.SecretKeyReference
}

// Host is what a host means for all of its guests.
type Host struct {
	Acceleration v1alpha1.Acceleration
	// GuestSubnet is the private subnet between a berth and its guest: its first address is the berth's, its second the
	// guest's.
	GuestSubnet netip.Prefix
	// MaxUnsizedDisk is the most that a disk may have whose spec has no size, in bytes.
	MaxUnsizedDisk int64
}

// Of is what the VirtualMachine is to be on a host. The digests that are recorded in its status stay its own: a tag that
// moves never changes a guest. An error says that its spec cannot be recorded.
func Of(vm *v1alpha1.VirtualMachine, on Host) (Machine, error) {
	spec := &vm.Spec
	record, err := berth.Record(spec)
	if err != nil {
		return Machine{}, err
	}
	m := Machine{
		UID: vm.UID, Namespace: vm.Namespace, Name: vm.Name, Record: record,
		CPU:    domain.CPU{Sockets: int(spec.CPU.Sockets), Cores: int(spec.CPU.Cores), Threads: int(spec.CPU.Threads), Model: spec.CPU.Model},
		Memory: spec.Memory.Size.Value(), Acceleration: on.Acceleration,
		Tools: spec.GuestTools != v1alpha1.GuestToolsNone && spec.Kernel == nil && len(spec.Disks) > 0,
	}
	m.Seed, m.Ignition = seedOf(spec, m.Tools), spec.Ignition
	if spec.Display != nil {
		m.Display = spec.Display.Type
	}
	if on.Acceleration == v1alpha1.AccelerationEmulation {
		m.TranslationCache = berth.EmulationCache
	}
	if k := spec.Kernel; k != nil {
		m.Kernel = &Kernel{Image: Image{For: ForKernel, Reference: k.Image, Pull: spec.ImagePullPolicy, Kernel: k.KernelPath, Initrd: k.InitrdPath}, CommandLine: k.CommandLine}
		if had := vm.Status.Kernel; had != nil && had.Image == k.Image {
			m.Kernel.Image.Digest = had.ImageDigest
		}
	}
	for i := range spec.Disks {
		m.Disks = append(m.Disks, diskOf(vm, &spec.Disks[i], on))
	}
	for _, n := range spec.Networks {
		gateway := on.GuestSubnet.Masked().Addr().Next()
		m.NICs = append(m.NICs, NIC{
			Name: n.Name, Tap: berth.TapName(vm.UID, n.Name),
			Gateway: gateway, Address: netip.PrefixFrom(gateway.Next(), on.GuestSubnet.Bits()),
		})
	}
	for _, s := range spec.ImagePullSecrets {
		m.PullSecrets = append(m.PullSecrets, types.NamespacedName{Namespace: vm.Namespace, Name: s.Name})
	}
	return m, nil
}

// diskOf is what a disk of the spec is to be, by what the status says that it was.
func diskOf(vm *v1alpha1.VirtualMachine, d *v1alpha1.Disk, on Host) Disk {
	cdrom := d.Type == v1alpha1.DiskTypeCDROM
	disk := Disk{
		Name: d.Name, Image: Image{For: d.Name, Reference: d.ImageName(), Pull: vm.Spec.ImagePullPolicy}, MaxSize: on.MaxUnsizedDisk, Ephemeral: d.Ephemeral || cdrom, CDROM: cdrom,
		Bus:   d.Bus,
		Cache: d.Cache, Serial: d.Serial, IOThread: d.IOThread, Limits: limitsOf(d.Limits),
	}
	if cdrom {
		disk.Bus = cmp.Or(d.Bus, v1alpha1.BusSATA)
	}
	if d.Size != nil {
		disk.Size = d.Size.Value()
	}
	var had v1alpha1.DiskStatus
	if i := slices.IndexFunc(vm.Status.Disks, func(s v1alpha1.DiskStatus) bool { return s.Name == d.Name }); i >= 0 {
		had = vm.Status.Disks[i]
	}
	if had.Image == disk.Image.Reference {
		disk.Image.Digest = had.ImageDigest
	}
	if d.PersistentVolumeClaim != nil {
		disk.Claim = &Claim{ReadOnly: d.Access == v1alpha1.DiskReadOnly, Shared: d.Access == v1alpha1.DiskShared}
		if had.ClaimName == berth.ClaimName(vm, d) {
			disk.Claim.UID, disk.Claim.Block = had.ClaimUID, had.VolumeMode == corev1.PersistentVolumeBlock
			disk.Claim.Used = had.ClaimUID != "" && had.UsedClaimUID == had.ClaimUID
			if had.Capacity != nil {
				disk.Claim.Capacity = had.Capacity.Value()
			}
		}
		return disk
	}
	if had.Image == disk.Image.Reference && had.Size != nil && disk.MaxSize > 0 { // it was allowed once
		disk.MaxSize = max(disk.MaxSize, had.Size.Value())
	}
	return disk
}

// limitsOf are a disk's limits; a burst lasts a second by default.
func limitsOf(l *v1alpha1.DiskLimits) (limits domain.Limits) {
	if l == nil {
		return limits
	}
	requests, bytes := value(l.IOPS), value(l.BytesPerSecond)
	limits = domain.Limits{IOPS: requests, Bytes: bytes.Value()}
	if b := l.Burst; b != nil {
		bytes = value(b.BytesPerSecond)
		limits.BurstIOPS, limits.BurstBytes, limits.BurstSeconds = value(b.IOPS), bytes.Value(), max(1, int64(value(b.Seconds)))
	}
	return limits
}

// value is zero for nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// seedOf is the seed of a guest that gets tools, or none.
func seedOf(spec *v1alpha1.VirtualMachineSpec, tools bool) *Seed {
	c := spec.CloudInit
	asked := c != nil || len(spec.SSHAuthorizedKeys) > 0
	if !asked && !tools {
		return nil
	}
	s := &Seed{Implied: !asked, SSHAuthorizedKeys: spec.SSHAuthorizedKeys}
	if c != nil {
		s.UserData, s.NetworkData = c.UserData, c.NetworkData
		s.UserDataSecret, s.NetworkDataSecret = c.UserDataSecretRef, c.NetworkDataSecretRef
	}
	return s
}

// displayPort is that of the first VNC display (RFC 6143, 3).
const displayPort = 5900

// ReservedPorts are the TCP ports on the berth's localhost that the shim serves, and not the guest.
func (m *Machine) ReservedPorts() []uint16 {
	if m.Display == "" {
		return nil
	}
	return []uint16{displayPort}
}

// OnFileSystems: claims have file systems for its disks.
func (m *Machine) OnFileSystems() bool {
	return slices.ContainsFunc(m.Disks, func(d Disk) bool { return d.Claim != nil && !d.Claim.Block })
}

// ReadsSecret: what QEMU reads when it starts is in a Secret, which its berth mounts.
func (m *Machine) ReadsSecret() bool { return m.Ignition != nil && m.Ignition.SecretRef != nil }

// Images are those that the machine needs: of claims, only those that are still to be seeded.
func (m *Machine) Images() (list []Image) {
	for _, d := range m.Disks {
		if d.Image.Reference != "" && (d.Claim == nil || !d.Claim.Used) {
			list = append(list, d.Image)
		}
	}
	if m.Kernel != nil {
		list = append(list, m.Kernel.Image)
	}
	return list
}
