package shimproto

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	// MaxDescriptors is how many descriptors one message carries at most: three for each of 8 NICs, and some channels.
	// Linux allows 253 (SCM_MAX_FD).
	MaxDescriptors = 32

	maxKind       = 32
	maxDeviceName = 63  // RFC 1123 label: what a network's name is
	maxHostname   = 253 // RFC 1035, 2.3.4
	minMTU        = 576 // RFC 791: every host accepts such datagrams

	inNames     = "abcdefghijklmnopqrstuvwxyz0123456789-"
	inHostnames = inNames + ".ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// Kind is a kind of device, in 1 to 32 lower-case letters, digits and hyphens.
type Kind string

// The kinds that this version knows, and what their descriptors are.
const (
	// KindConsole is QEMU's serial console: a connected stream socket. A guest has one.
	KindConsole Kind = "console"
	// KindDHCP is the DHCP lease of a NIC: a UDP socket on port 67 of the guest's tap.
	KindDHCP Kind = "dhcp"
	// KindGuest is QEMU's end of the guest program's port, dev.berth.guest.0: a connected stream socket. A guest has one.
	KindGuest Kind = "guest"
	// KindExit is likewise the exit port's, dev.berth.exit.0: what the guest writes last to it is its exit code.
	KindExit Kind = "exit"
	// KindDisplay is QEMU's VNC socket, an O_PATH descriptor: each viewer is one connection by /proc/self/fd. A guest has one.
	KindDisplay Kind = "display"
)

// single are the kinds of which a guest has one device at most.
var single = []Kind{KindConsole, KindGuest, KindExit, KindDisplay}

// HandOver hands the guest's devices to the shim, each with a descriptor. A shim
// gets what its State says it takes, and skips what it does not know all the same.
type HandOver struct {
	// InstanceID names this run of the guest, in 1 to 128 printable ASCII characters. A container serves one: the same
	// HandOver again changes nothing, and one with another ID is refused.
	InstanceID string `json:"run"`
	// Devices are at most MaxDescriptors, in any order.
	Devices []Device `json:"devices"`
	// DirectKernel says that the guest boots a kernel directly, and so has no disk with the guest program.
	DirectKernel bool `json:"directKernel,omitempty"`
}

// Device is one device of the guest.
type Device struct {
	Kind Kind `json:"kind"`
	// Name tells it from others of its kind, in 1 to 63 lower-case letters, digits and hyphens: a NIC's is its network's.
	Name string `json:"name"`
	// FD is the index of its descriptor among those that come with the message.
	FD int `json:"fd"`
	// Lease is what a device of KindDHCP leases.
	Lease *Lease `json:"lease,omitempty"`
}

// Lease is one DHCP lease.
type Lease struct {
	// MAC is the guest's; other clients get no answer.
	MAC MAC `json:"mac"`
	// Address is the guest's IPv4 address with the length of its prefix, at most 30.
	Address netip.Prefix `json:"address"`
	// Router is the guest's gateway, in the same prefix. The server answers with this address.
	Router netip.Addr `json:"router"`
	// MTU is the interface's, in bytes, 576 to 65535.
	MTU int `json:"mtu"`
	// Hostname is at most 253 characters; empty: the guest keeps its own.
	Hostname string `json:"hostname,omitempty"`
}

// MAC is an Ethernet address. The six bytes of a net.HardwareAddr convert to it.
type MAC [6]byte

// MarshalText writes the address as six hexadecimal pairs with colons.
func (m MAC) MarshalText() ([]byte, error) {
	return bytes.ReplaceAll(fmt.Appendf(nil, "% x", m[:]), []byte{' '}, []byte{':'}), nil
}

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(text []byte) error {
	b, err := hex.AppendDecode(nil, bytes.ReplaceAll(text, []byte{':'}, nil))
	if err == nil && len(b) == len(m) {
		*m = MAC(b)
		if again, _ := m.MarshalText(); bytes.EqualFold(again, text) { // it never fails
			return nil
		}
	}
	return fmt.Errorf("%.20q is no MAC address", text)
}

func (h HandOver) validate() error {
	if err := validateInstanceID(h.InstanceID); err != nil {
		return err
	}
	if len(h.Devices) > MaxDescriptors {
		return fmt.Errorf("%d devices are more than %d", len(h.Devices), MaxDescriptors)
	}
	var described [MaxDescriptors]bool
	names := make(map[Device]bool, len(h.Devices))
	for _, d := range h.Devices {
		if err := d.check(); err != nil {
			return err
		}
		id := Device{Kind: d.Kind, Name: d.Name}
		if slices.Contains(single, d.Kind) {
			id.Name = ""
		}
		if names[id] || described[d.FD] {
			return fmt.Errorf("%s %s is not the only one of its name or with descriptor %d, or of a kind of which a guest has one", d.Kind, d.Name, d.FD)
		}
		names[id], described[d.FD] = true, true
	}
	return nil
}

func (d Device) check() error {
	switch {
	case !isName(string(d.Kind), maxKind) || !isName(d.Name, maxDeviceName):
		return fmt.Errorf("device %.70q of kind %.40q: a name has 1 to %d lower-case letters, digits and hyphens, a kind 1 to %d", d.Name, d.Kind, maxDeviceName, maxKind)
	case d.FD < 0 || d.FD >= MaxDescriptors:
		return fmt.Errorf("descriptor %d of %s %s is not in 0 to %d", d.FD, d.Kind, d.Name, MaxDescriptors-1)
	case d.Kind != KindDHCP:
		return nil
	case d.Lease == nil:
		return fmt.Errorf("%s %s comes without what it leases", d.Kind, d.Name)
	}
	return d.Lease.check()
}

func (l *Lease) check() error {
	switch {
	case !l.Address.IsValid() || !l.Address.Addr().Is4() || l.Address.Bits() > 30:
		return fmt.Errorf("address %q is no IPv4 address with a prefix of at most 30 bits", l.Address)
	case !l.Address.Contains(l.Router) || l.Router == l.Address.Addr():
		return fmt.Errorf("router %q is no neighbour of %q", l.Router, l.Address)
	case l.MTU < minMTU || l.MTU > 65535:
		return fmt.Errorf("MTU %d is not in 576 to 65535", l.MTU)
	case len(l.Hostname) > maxHostname || strings.Trim(l.Hostname, inHostnames) != "":
		return fmt.Errorf("%.300q is no host name", l.Hostname)
	}
	return nil
}

// isName: the text is 1 to limit lower-case letters, digits and hyphens.
func isName(text string, limit int) bool {
	return text != "" && len(text) <= limit && strings.Trim(text, inNames) == ""
}
