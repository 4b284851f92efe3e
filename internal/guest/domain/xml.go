package domain

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

const kibi = 1 << 10

// XML returns the domain of guest g. An error means that g is no guest, which the API's checks should have told already.
//
// The machine is the leanest q35 that boots any Linux: there is no USB, sound,
// graphics or anything else that nobody asked for. Where its devices are, its layout says.
func XML(g Guest) (string, error) {
	if err := g.check(); err != nil {
		return "", fmt.Errorf("describing guest %s: %w", g.UUID, err)
	}
	metadata, err := metadata(g.Identity, g.Hardware)
	if err != nil {
		return "", err
	}
	own, shared := g.ioThreads()
	d := libvirtxml.Domain{
		Type:       "kvm",
		Name:       g.Name,
		UUID:       g.UUID,
		Metadata:   &libvirtxml.DomainMetadata{XML: metadata},
		Memory:     &libvirtxml.DomainMemory{Value: uint(g.Memory / kibi), Unit: "KiB"}, //nolint:gosec // check allows no negative size
		VCPU:       g.vcpu(),
		IOThreads:  own + shared,
		OS:         g.os(),
		Features:   g.features(),
		CPU:        g.cpu(),
		Clock:      g.clock(),
		OnPoweroff: "destroy",
		OnReboot:   "restart",
		// The guest's corpse is kept until the agent has seen it, so a panic is known even if the agent was away.
		OnCrash: "preserve",
		Devices: g.devices(),
		// libvirt relabels nothing: what QEMU may open, the agent has given to its user.
		SecLabel: []libvirtxml.DomainSecLabel{{
			Type: "static", Model: "dac", Relabel: "no", Label: fmt.Sprintf("+%d:+%d", g.UID, g.GID),
		}},
	}
	if g.emulated() {
		d.Type = "qemu"
	}
	if g.Partition != "" {
		d.Resource = &libvirtxml.DomainResource{Partition: g.Partition}
	}
	if g.Ignition != "" {
		d.SysInfo = []libvirtxml.DomainSysInfo{{FWCfg: &libvirtxml.DomainSysInfoFWCfg{
			Entry: []libvirtxml.DomainSysInfoEntry{{Name: "opt/com.coreos/config", File: g.Ignition}},
		}}}
	}
	return d.Marshal()
}

func (g Guest) emulated() bool { return g.Acceleration == v1alpha1.AccelerationEmulation }

// vcpu names the vCPUs that are there only if there is room for more.
func (g Guest) vcpu() *libvirtxml.DomainVCPU {
	count, most := g.CPU.count(), g.maxSockets()*g.CPU.Cores*g.CPU.Threads
	v := &libvirtxml.DomainVCPU{Placement: "static", Value: uint(most)}
	if most > count {
		v.Current = uint(count)
	}
	return v
}

func (c CPU) count() int { return c.Sockets * c.Cores * c.Threads }

// bootRetry is after how many milliseconds SeaBIOS resets a guest that it cannot boot: each reset is told and counted, so such
// a guest does not pass for one that runs.
const bootRetry = 10_000

// os has the firmware, and boot loaders that use its text screen, speak on the serial console. No device comes of that, and
// the guest's kernel sees no other hardware, so it is no part of a layout: every start has it.
func (g Guest) os() *libvirtxml.DomainOS {
	os := &libvirtxml.DomainOS{
		Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: g.Hardware.Machine, Type: "hvm"},
		BIOS: &libvirtxml.DomainBIOS{UseSerial: "yes", RebootTimeout: new(bootRetry)},
	}
	if k := g.Kernel; k != nil {
		os.Kernel, os.Initrd, os.Cmdline = k.Path, k.Initrd, k.CommandLine
	}
	return os
}

func (g Guest) features() *libvirtxml.DomainFeatureList {
	f := &libvirtxml.DomainFeatureList{
		ACPI: &libvirtxml.DomainFeature{},
		APIC: &libvirtxml.DomainFeatureAPIC{},
		// VMware's port and system management mode: nobody needs them without VMware's tools and without UEFI.
		VMPort: &libvirtxml.DomainFeatureState{State: "off"},
		SMM:    &libvirtxml.DomainFeatureSMM{State: "off"},
	}
	if g.emulated() && g.TranslationCache > 0 {
		f.TCG = &libvirtxml.DomainFeatureTCG{TBCache: &libvirtxml.DomainFeatureTCGTBCache{
			Unit: "MiB", Size: uint(g.TranslationCache / kibi / kibi),
		}}
	}
	return f
}

func (g Guest) cpu() *libvirtxml.DomainCPU {
	cpu := &libvirtxml.DomainCPU{Topology: &libvirtxml.DomainCPUTopology{
		Sockets: g.maxSockets(), Cores: g.CPU.Cores, Threads: g.CPU.Threads,
	}}
	hosts := g.CPU.Model == berth.CPUHostModel || g.CPU.Model == berth.CPUHostPassthrough
	switch {
	case hosts && g.emulated():
		cpu.Mode = "maximum"
		// Five levels of page tables cost an emulated guest time and give it nothing.
		cpu.Features = []libvirtxml.DomainCPUFeature{{Policy: "disable", Name: "la57"}}
	case hosts:
		cpu.Mode = g.CPU.Model
	default:
		cpu.Mode, cpu.Match = "custom", "exact"
		cpu.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: g.CPU.Model}
		if g.emulated() {
			cpu.Check = "none" // QEMU emulates what it can of a model
		}
	}
	return cpu
}

// clock has no HPET, which costs the host timers and Linux has better. Lost ticks are caught up for guests that count them.
func (g Guest) clock() *libvirtxml.DomainClock {
	c := &libvirtxml.DomainClock{Offset: "utc", Timer: []libvirtxml.DomainTimer{{Name: "hpet", Present: "no"}}}
	if !g.emulated() {
		c.Timer = append(c.Timer,
			libvirtxml.DomainTimer{Name: "rtc", TickPolicy: "catchup"},
			libvirtxml.DomainTimer{Name: "pit", TickPolicy: "delay"})
	}
	return c
}
