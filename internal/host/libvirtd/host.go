package libvirtd

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// HostFacts are what libvirt knows of its host.
type HostFacts struct {
	LibvirtVersion, QEMUVersion string
	// CPUs is the number of logical processors in use, Memory the host's in bytes.
	CPUs   int32
	Memory int64
	// MachineTypes are those of QEMU for 64-bit PCs.
	MachineTypes []string
	// Q35 is the one of them that QEMU means by "q35", such as pc-q35-7.2.
	Q35 string
	// SecurityModels are what libvirt confines QEMU by: dac, that is users, and apparmor or selinux.
	SecurityModels []string
	// KVM and Emulation are nil when guests cannot run that way.
	KVM, Emulation *DomainCaps
	// KVMUnavailable is set when KVM is nil.
	KVMUnavailable error
	// StateDirInaccessible is why no QEMU could reach its domain's directory; nil when all can.
	StateDirInaccessible error
}

// DomainCaps is one way to run guests.
type DomainCaps struct {
	// CPUModels are the named models that can be given to guests.
	CPUModels []string
}

// HostFacts asks for all facts. The first time after libvirtd's installation takes it many seconds.
func (c *Client) HostFacts(ctx context.Context) (HostFacts, error) {
	var f HostFacts
	var caps string
	err := c.starts.call(ctx, func(l *golibvirt.Libvirt) error {
		libvirt, err := l.ConnectGetLibVersion()
		if err != nil {
			return err
		}
		qemu, err := l.ConnectGetVersion()
		if err != nil {
			return err
		}
		f.LibvirtVersion, f.QEMUVersion = version(libvirt), version(qemu)
		var kib uint64
		if _, kib, f.CPUs, _, _, _, _, _, err = l.NodeGetInfo(); err != nil {
			return err
		}
		f.Memory = int64(kib) << 10 //nolint:gosec // of a real machine
		caps, err = l.ConnectGetCapabilities()
		return err
	})
	if err != nil {
		return HostFacts{}, fmt.Errorf("querying the host's versions and capabilities: %w", classify(err))
	}
	if err := f.readCapabilities(caps); err != nil {
		return HostFacts{}, err
	}
	if f.KVM, f.KVMUnavailable, err = c.probe(ctx, "kvm"); err != nil {
		return HostFacts{}, err
	}
	root, err := c.Root()
	if err != nil {
		return HostFacts{}, err
	}
	f.StateDirInaccessible = checkStateDir(filepath.Join(root, stateDir), c.KVMGroup())
	f.Emulation, _, err = c.probe(ctx, "qemu")
	return f, err
}

// probe returns nil and why if libvirt says that guests cannot run this way.
func (c *Client) probe(ctx context.Context, domainType string) (_ *DomainCaps, why, err error) {
	v, err := c.domainCaps(ctx, domainType)
	if err == nil && domainType == "kvm" {
		err = c.kvmUsable()
	}
	if fault.ReasonOf(err) == v1alpha1.ReasonKVMUnavailable {
		return nil, err, nil
	}
	return v, nil, err
}

// domainCaps asks libvirt for the domain capabilities of a domain type (virConnectGetDomainCapabilities).
func (c *Client) domainCaps(ctx context.Context, domainType string) (*DomainCaps, error) {
	doc, err := ask(ctx, c.starts, func(l *golibvirt.Libvirt) (string, error) {
		return l.ConnectGetDomainCapabilities(nil, golibvirt.OptString{"x86_64"}, golibvirt.OptString{"q35"}, golibvirt.OptString{domainType}, 0)
	})
	if err != nil {
		_, refused := errors.AsType[golibvirt.Error](err)
		err = fmt.Errorf("querying the capabilities of domain type %s: %w", domainType, classify(err))
		if refused {
			err = fault.NewTransient(v1alpha1.ReasonKVMUnavailable, err)
		}
		return nil, err
	}
	var caps struct {
		Modes []struct {
			Name   string `xml:"name,attr"`
			Models []struct {
				Usable string `xml:"usable,attr"`
				Name   string `xml:",chardata"`
			} `xml:"model"`
		} `xml:"cpu>mode"`
	}
	if err := xml.Unmarshal([]byte(doc), &caps); err != nil {
		return nil, fmt.Errorf("reading domain capabilities: %w", err)
	}
	v := &DomainCaps{}
	for _, mode := range caps.Modes {
		for _, m := range mode.Models {
			if mode.Name == "custom" && m.Usable == "yes" {
				v.CPUModels = append(v.CPUModels, m.Name)
			}
		}
	}
	slices.Sort(v.CPUModels)
	return v, nil
}

// readCapabilities reads from libvirt's capabilities (virConnectGetCapabilities) what they say of machines and security.
func (f *HostFacts) readCapabilities(doc string) error {
	var caps struct {
		SecurityModels []string `xml:"host>secmodel>model"`
		Guests         []struct {
			OS   string `xml:"os_type"`
			Arch struct {
				Name     string `xml:"name,attr"`
				Machines []struct {
					Canonical string `xml:"canonical,attr"` // of an alias
					Name      string `xml:",chardata"`
				} `xml:"machine"`
			} `xml:"arch"`
		} `xml:"guest"`
	}
	if err := xml.Unmarshal([]byte(doc), &caps); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	f.SecurityModels = caps.SecurityModels
	for _, g := range caps.Guests {
		if g.OS != "hvm" || g.Arch.Name != "x86_64" {
			continue
		}
		for _, m := range g.Arch.Machines {
			f.MachineTypes = append(f.MachineTypes, m.Name)
			if m.Name == "q35" {
				f.Q35 = m.Canonical
			}
		}
	}
	slices.Sort(f.MachineTypes)
	f.MachineTypes = slices.Compact(f.MachineTypes)
	return nil
}

// version reads libvirt's way to write 9.0.0 as 9000000.
func version(n uint64) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000)
}

const (
	kvmDevice = "dev/kvm"
	// stateDir is where libvirt gives every domain a directory, which its QEMU must be able to read.
	stateDir = "var/lib/libvirt/qemu"
)

// KVMGroup is the group that may open /dev/kvm on libvirt's host; 0 where there is none.
func (c *Client) KVMGroup() uint32 {
	var st unix.Stat_t
	root, err := c.Root()
	if err != nil || unix.Stat(filepath.Join(root, kvmDevice), &st) != nil {
		return 0
	}
	return st.Gid
}

// kvmUsable checks that a QEMU that is not root can open /dev/kvm. libvirt, which
// is root, says that KVM works, and then stalls for minutes at every start.
func (c *Client) kvmUsable() error {
	root, err := c.Root()
	if err != nil {
		return err
	}
	return fault.NewTransient(v1alpha1.ReasonKVMUnavailable, checkKVM(filepath.Join(root, kvmDevice)))
}

func checkKVM(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("checking /dev/kvm: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("/dev/kvm is not a device")
	}
	const groupRW, othersRW = 0o060, 0o006
	if st.Mode&othersRW != othersRW && (st.Mode&groupRW != groupRW || st.Gid == 0) {
		return fmt.Errorf("/dev/kvm has mode %#o and group %d, so the QEMU of a guest, which is not root, cannot open it: chgrp kvm /dev/kvm; chmod 660 /dev/kvm; and install a udev rule that keeps it so", st.Mode&0o777, st.Gid)
	}
	return nil
}

// checkStateDir checks that a QEMU with a user of its own, and this group, gets through to its domain's
// directory. Debian's packages make the one above it for their own user's QEMUs alone, and then every QEMU ends as it
// starts; Ubuntu's let that group through.
func checkStateDir(path string, group uint32) error {
	const pass, groupPass = 0o001, 0o010
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist): // libvirt is about to make it, or keeps it elsewhere
		return nil
	case err != nil:
		return fmt.Errorf("checking /%s: %w", stateDir, err)
	case st.Mode&pass == 0 && (st.Mode&groupPass == 0 || group == 0 || st.Gid != group):
		return fmt.Errorf("/%s has mode %#o, so the QEMU users of guests cannot traverse it", stateDir, st.Mode&0o777)
	}
	return nil
}
