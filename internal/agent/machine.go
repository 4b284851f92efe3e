package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/volume"
)

// maxUserData bounds user data, in bytes: that of any Secret.
const maxUserData = 1 << 20

func (a *Agent) domainName(g *guest) string { return berth.DomainName(g.VM.Namespace, g.VM.Name) }

func (a *Agent) consolePath(uid string) string {
	return filepath.Join(a.RunDir, "consoles", uid+".sock")
}

// machine describes the guest's domain.
func (a *Agent) machine(g *guest, user int) (domain.Guest, error) {
	vm := g.VM
	record, err := berth.Record(&vm.Spec)
	if err != nil {
		return domain.Guest{}, err
	}
	hardware, err := a.hardware(string(g.uid))
	if err != nil {
		return domain.Guest{}, err
	}
	m := domain.Guest{
		UUID: string(g.uid), Name: a.domainName(g),
		Identity:     domain.Identity{Namespace: vm.Namespace, Name: vm.Name, VM: string(g.uid), Berth: string(g.Berth.UID), Record: record},
		Hardware:     hardware,
		Acceleration: a.Acceleration,
		Partition:    a.partition(g),
		CPU:          domain.CPU{Sockets: int(vm.Spec.CPU.Sockets), Cores: int(vm.Spec.CPU.Cores), Threads: int(vm.Spec.CPU.Threads), Model: vm.Spec.CPU.Model},
		Memory:       vm.Spec.Memory.Size.Value(),
		Console:      a.consolePath(string(g.uid)),
		UID:          uint32(user), //nolint:gosec // a uid
		GID:          a.qemuGroup(user),
	}
	if a.Acceleration == v1alpha1.AccelerationEmulation {
		m.TranslationCache = berth.EmulationCache
	}
	if len(vm.Spec.Networks) > 0 {
		n := vm.Spec.Networks[0].Name
		m.NIC = &domain.NIC{Tap: berth.TapName(g.uid, n), MAC: berth.MAC(g.uid, n)}
	}
	made, err := a.store.Disks(string(g.uid))
	if err != nil {
		return m, fmt.Errorf("reading disks: %w", err)
	}
	for _, want := range vm.Spec.Disks {
		for _, d := range made {
			if d.Name == want.Name {
				m.Disks = append(m.Disks, domain.Disk{Name: d.Name, Path: d.Path, Backing: []domain.Backing{
					{Path: d.Base.DiskPath(), Format: domain.Format(d.Base.Format)},
				}})
			}
		}
	}
	if len(m.Disks) != len(vm.Spec.Disks) {
		return m, fmt.Errorf("the spec has %d disks, and %d of them are in the VM's directory on the node", len(vm.Spec.Disks), len(m.Disks))
	}
	if k := vm.Spec.Kernel; k != nil {
		kernel, err := a.store.Image(g.images[plan.Kernel])
		if err != nil {
			return m, fmt.Errorf("kernel image %s: %w", k.Image, err)
		}
		m.Kernel = &domain.Kernel{Path: kernel.KernelPath(), Initrd: kernel.InitrdPath(), CommandLine: k.CommandLine}
	}
	return m, nil
}

func needsSeed(vm *v1alpha1.VirtualMachine) bool {
	return vm.Spec.CloudInit != nil || len(vm.Spec.SSHAuthorizedKeys) > 0
}

// writeSeed writes the first-boot data into the file that QEMU has open. A
// Secret can be read only now that the container has it mounted.
func (a *Agent) writeSeed(g *guest) error {
	if !needsSeed(g.VM) {
		return nil
	}
	s := seed.Seed{InstanceID: string(g.uid), Hostname: g.VM.Name, SSHAuthorizedKeys: g.VM.Spec.SSHAuthorizedKeys}
	if c := g.VM.Spec.CloudInit; c != nil {
		if c.UserData != nil {
			s.UserData = []byte(*c.UserData)
		}
		if c.NetworkData != nil {
			s.NetworkConfig = []byte(*c.NetworkData)
		}
		if ref := c.UserDataSecretRef; ref != nil {
			data, err := volume.ReadFile(g.link.PID(), berth.UserDataPath, maxUserData)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fault.ByUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
					"Secret %s/%s does not exist or has no key %s: create it; kubelet shows it to the guest within two minutes", g.VM.Namespace, ref.Name, ref.Key))
			case errors.Is(err, volume.ErrTooLarge):
				return fault.ByUser(v1alpha1.ReasonSeedTooLarge, fmt.Errorf("Secret %s/%s: %w", g.VM.Namespace, ref.Name, err))
			case err != nil:
				return fmt.Errorf("reading user data: %w", err)
			}
			s.UserData = data
		}
	}
	image, err := seed.Build(s)
	if err != nil {
		return err
	}
	return a.store.WriteSeed(string(g.uid), image)
}
