package libvirtd

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	golibvirt "github.com/digitalocean/go-libvirt"

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
	// KVM and Emulation are nil when guests cannot run that way.
	KVM, Emulation *Virt
	// WhyNoKVM is set when KVM is nil.
	WhyNoKVM error
	// StateDirClosed is why no QEMU could reach its domain's directory; nil when all can.
	StateDirClosed error
}

// Virt is one way to run guests.
type Virt struct {
	// Emulator is the path of QEMU, as libvirtd sees it.
	Emulator string
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
		return HostFacts{}, fmt.Errorf("asking for the host's facts: %w", classify(err))
	}
	if f.MachineTypes, f.Q35, err = machines(caps); err != nil {
		return HostFacts{}, err
	}
	if f.KVM, f.WhyNoKVM, err = c.try(ctx, "kvm"); err != nil {
		return HostFacts{}, err
	}
	root, err := c.Root()
	if err != nil {
		return HostFacts{}, err
	}
	f.StateDirClosed = checkStateDir(filepath.Join(root, stateDir), c.KVMGroup())
	f.Emulation, _, err = c.try(ctx, "qemu")
	return f, err
}

// try returns nil and why if libvirt says that guests cannot run this way.
func (c *Client) try(ctx context.Context, kind string) (_ *Virt, why, err error) {
	v, err := c.virt(ctx, kind)
	if err == nil && kind == "kvm" {
		err = c.kvmUsable()
	}
	if fault.ReasonOf(err) == v1alpha1.ReasonKVMUnavailable {
		return nil, err, nil
	}
	return v, nil, err
}

// virt asks what guests of a domain type can be.
func (c *Client) virt(ctx context.Context, kind string) (*Virt, error) {
	var doc string
	err := c.starts.call(ctx, func(l *golibvirt.Libvirt) (err error) {
		doc, err = l.ConnectGetDomainCapabilities(nil, golibvirt.OptString{"x86_64"}, golibvirt.OptString{"q35"}, golibvirt.OptString{kind}, 0)
		return err
	})
	if _, ok := errors.AsType[golibvirt.Error](err); ok {
		return nil, fault.ByTime(v1alpha1.ReasonKVMUnavailable, fmt.Errorf("asking what a %s guest can be: %w", kind, classify(err)))
	}
	if err != nil {
		return nil, fmt.Errorf("asking what a %s guest can be: %w", kind, err)
	}
	var caps struct {
		Path  string `xml:"path"`
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
	v := &Virt{Emulator: caps.Path}
	for _, mode := range caps.Modes {
		if mode.Name != "custom" {
			continue
		}
		for _, m := range mode.Models {
			if m.Usable == "yes" {
				v.CPUModels = append(v.CPUModels, m.Name)
			}
		}
	}
	slices.Sort(v.CPUModels)
	return v, nil
}

func machines(doc string) (types []string, q35 string, err error) {
	var caps struct {
		Guests []struct {
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
		return nil, "", fmt.Errorf("reading capabilities: %w", err)
	}
	for _, g := range caps.Guests {
		if g.OS != "hvm" || g.Arch.Name != "x86_64" {
			continue
		}
		for _, m := range g.Arch.Machines {
			types = append(types, m.Name)
			if m.Name == "q35" {
				q35 = m.Canonical
			}
		}
	}
	slices.Sort(types)
	return slices.Compact(types), q35, nil
}

// version reads libvirt's way to write 9.0.0 as 9000000.
func version(n uint64) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000)
}
