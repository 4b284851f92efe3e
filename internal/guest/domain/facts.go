package domain

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// namespace is the XML namespace of our metadata.
const namespace = "https://berth.dev/domain/v1"

// metadataElement is how a guest's Identity and Hardware are written; libvirt keeps it as it is.
type metadataElement struct {
	XMLName   xml.Name `xml:"berth:guest"`
	Prefix    string   `xml:"xmlns:berth,attr"`
	Namespace string   `xml:"namespace,attr"`
	Name      string   `xml:"name,attr"`
	VM        string   `xml:"vm,attr"`
	Berth     string   `xml:"berth,attr"`
	Record    string   `xml:",chardata"`
	Layout    int      `xml:"layout,attr,omitempty"`
	Machine   string   `xml:"machine,attr,omitempty"`
}

func (g Guest) metadata() (string, error) {
	i := g.Identity
	m := metadataElement{Prefix: namespace, Namespace: i.Namespace, Name: i.Name, VM: i.VM, Berth: i.Berth, Record: i.Record}
	if g.Hardware != unrecorded {
		m.Layout, m.Machine = g.Hardware.Layout, g.Hardware.Machine
	}
	out, err := xml.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("writing metadata: %w", err)
	}
	return string(out), nil
}

// Facts are what a live domain says of itself.
type Facts struct {
	UUID, Name string
	// Identity is nil when the domain is not Berth's.
	Identity *Identity
	// Hardware is that of the domain's VM. Its layout is -1 if it cannot be read.
	Hardware Hardware
	// Emulated is true when the domain runs without KVM.
	Emulated bool
	// Taps are the names of the domain's network devices, as libvirt made them.
	Taps []string
	// Console is the path of the first serial console's socket, GuestPort, ExitPort and Display those of the sockets that
	// Guest calls so; empty if it has none.
	Console, GuestPort, ExitPort, Display string
	// Tools: it has the disk with the guest program.
	Tools bool
	// AgentConnected is true while a guest agent holds its channel open.
	AgentConnected bool
	// AgentPTY is the number of the pseudo-terminal that is the host's end of its channel; -1 if libvirtd itself has that end.
	AgentPTY int
	// Paths are all files and devices that the domain has as disks, kernel and initrd.
	Paths []string
}

// live is the little of a domain's XML that Facts reads. Foreign domains may
// hold anything else, so it is not read as a whole.
type live struct {
	XMLName  xml.Name `xml:"domain"`
	Type     string   `xml:"type,attr"`
	UUID     string   `xml:"uuid"`
	Name     string   `xml:"name"`
	Metadata struct {
		Guests []struct {
			Namespace string `xml:"namespace,attr"`
			Name      string `xml:"name,attr"`
			VM        string `xml:"vm,attr"`
			Berth     string `xml:"berth,attr"`
			Record    string `xml:",chardata"`
			Layout    string `xml:"layout,attr"`
			Machine   string `xml:"machine,attr"`
		} `xml:"https://berth.dev/domain/v1 guest"`
	} `xml:"metadata"`
	Kernel     string      `xml:"os>kernel"`
	Initrd     string      `xml:"os>initrd"`
	Disks      []liveLayer `xml:"devices>disk"`
	Interfaces []struct {
		Target struct {
			Dev string `xml:"dev,attr"`
		} `xml:"target"`
	} `xml:"devices>interface"`
	Serials []struct {
		Type   string `xml:"type,attr"`
		Source struct {
			Path string `xml:"path,attr"`
		} `xml:"source"`
	} `xml:"devices>serial"`
	Channels []struct {
		Type   string `xml:"type,attr"`
		Source struct {
			Path string `xml:"path,attr"`
		} `xml:"source"`
		Target struct {
			Name  string `xml:"name,attr"`
			State string `xml:"state,attr"`
		} `xml:"target"`
	} `xml:"devices>channel"`
	Graphics []struct {
		Type    string `xml:"type,attr"`
		Listens []struct {
			Socket string `xml:"socket,attr"`
		} `xml:"listen"`
	} `xml:"devices>graphics"`
}

type liveLayer struct {
	Serial string `xml:"serial"`
	Source struct {
		File string `xml:"file,attr"`
		Dev  string `xml:"dev,attr"`
	} `xml:"source"`
	Backing *liveLayer `xml:"backingStore"`
}

// ParseFacts reads a live domain's XML.
func ParseFacts(doc string) (Facts, error) {
	var l live
	if err := xml.Unmarshal([]byte(doc), &l); err != nil {
		return Facts{}, fmt.Errorf("reading domain XML: %w", err)
	}
	f := Facts{UUID: strings.ToLower(strings.TrimSpace(l.UUID)), Name: l.Name, Emulated: l.Type == "qemu", AgentPTY: -1}
	if ours := l.Metadata.Guests; len(ours) == 1 { // two would be somebody's trick
		m := ours[0]
		f.Identity = &Identity{Namespace: m.Namespace, Name: m.Name, VM: m.VM, Berth: m.Berth, Record: strings.TrimSpace(m.Record)}
		f.Hardware = hardware(m.Layout, m.Machine)
	}
	for _, nic := range l.Interfaces {
		if nic.Target.Dev != "" {
			f.Taps = append(f.Taps, nic.Target.Dev)
		}
	}
	if len(l.Serials) > 0 && l.Serials[0].Type == "unix" {
		f.Console = l.Serials[0].Source.Path
	}
	for _, c := range l.Channels {
		number, isTerminal := strings.CutPrefix(c.Source.Path, "/dev/pts/")
		switch {
		case c.Target.Name == agentPort:
			f.AgentConnected = c.Target.State == "connected"
			if isTerminal && c.Type == "pty" {
				f.AgentPTY = ptyNumber(number)
			}
		case c.Target.Name == guestPort && c.Type == "unix":
			f.GuestPort = c.Source.Path
		case c.Target.Name == exitPort && c.Type == "unix":
			f.ExitPort = c.Source.Path
		}
	}
	for _, g := range l.Graphics {
		if g.Type == "vnc" && len(g.Listens) > 0 {
			f.Display = g.Listens[0].Socket
		}
	}
	for _, p := range []string{l.Kernel, l.Initrd} {
		if p != "" {
			f.Paths = append(f.Paths, p)
		}
	}
	for _, disk := range l.Disks {
		f.Tools = f.Tools || disk.Serial == toolsSerial
		for layer := &disk; layer != nil; layer = layer.Backing {
			if path := cmp.Or(layer.Source.File, layer.Source.Dev); path != "" {
				f.Paths = append(f.Paths, path)
			}
		}
	}
	return f, nil
}

// hardware reads what metadata says of it. What it does not say is as it was before it said anything.
func hardware(layout, machine string) Hardware {
	n, err := strconv.Atoi(cmp.Or(layout, "0"))
	if err != nil {
		n = -1
	}
	return Hardware{Layout: n, Machine: cmp.Or(machine, unrecorded.Machine)}
}

// ptyNumber is -1 for what is no number.
func ptyNumber(text string) int {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}
