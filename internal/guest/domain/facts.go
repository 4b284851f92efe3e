package domain

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// namespace is the XML namespace of our metadata.
const namespace = "https://berth.dev/domain/v1"

// metadataElement is how a guest's Identity and Hardware are written; libvirt keeps it as it is.
type metadataElement struct {
	XMLName xml.Name `xml:"berth:guest"`
	Prefix  string   `xml:"xmlns:berth,attr"`
	Identity
	Layout  int    `xml:"layout,attr"`
	Machine string `xml:"machine,attr"`
}

// MetadataXML is the domain's metadata with another record.
func (f Facts) MetadataXML(record string) (string, error) {
	if f.Identity == nil || !f.Hardware.HasLayout() {
		return "", fmt.Errorf("domain %s is not one of this version's", f.Name)
	}
	i := *f.Identity
	i.Record = record
	if err := checkTexts(nil, record); err != nil {
		return "", err
	}
	return metadata(i, f.Hardware)
}

func metadata(i Identity, h Hardware) (string, error) {
	out, err := xml.Marshal(metadataElement{Prefix: namespace, Identity: i, Layout: h.Layout, Machine: h.Machine})
	return string(out), fault.Doing(err, "writing metadata")
}

// Facts are what a live domain says of itself.
type Facts struct {
	// Name is the domain's in libvirt.
	Name string
	// Identity is nil when the domain is not Berth's.
	Identity *Identity
	// Hardware is that of the domain's VM. Its layout is -1 if it cannot be read.
	Hardware Hardware
	// Display is the path of the display's socket; empty if it has none.
	Display string
	// Tools: it has the disk with the guest program.
	Tools bool
	// AgentConnected is true while a guest agent holds its channel open.
	AgentConnected bool
	// AgentPTY is the number of the pseudo-terminal that is the host's end of its channel; -1 if there is none.
	AgentPTY int
	// Disks are those of the spec; neither the first-boot data nor the guest program are among them.
	Disks []LiveDisk

	scsi  bool   // it has a controller for SCSI disks
	taken []Spot // by whatever disks it has
}

// LiveDisk is a disk that a guest has.
type LiveDisk struct {
	// Name is the disk's in the spec, as its alias tells. Whatever does not have such a one is not among Facts' disks.
	Name string
	// Alias is libvirt's name for the device, Target that for the disk.
	Alias, Target string
	Bus           v1alpha1.DiskBus
	CDROM         bool
	// Path is what it reads and writes, "" for an empty drive.
	Path   string
	Limits Limits

	at Spot
}

// live is the little of a domain's XML that Facts reads. Foreign domains may
// hold anything else, so it is not read as a whole.
type live struct {
	XMLName  xml.Name `xml:"domain"`
	Name     string   `xml:"name"`
	Metadata struct {
		Guests []struct {
			Identity
			Layout  string `xml:"layout,attr"`
			Machine string `xml:"machine,attr"`
		} `xml:"https://berth.dev/domain/v1 guest"`
	} `xml:"metadata"`
	Disks       []liveDisk `xml:"devices>disk"`
	Controllers []struct {
		Type string `xml:"type,attr"`
	} `xml:"devices>controller"`
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

type liveDisk struct {
	Device string `xml:"device,attr"`
	Source struct {
		File string `xml:"file,attr"`
		Dev  string `xml:"dev,attr"`
	} `xml:"source"`
	Serial string `xml:"serial"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
	Address struct {
		Bus    number `xml:"bus,attr"`
		Slot   number `xml:"slot,attr"`
		Target number `xml:"target,attr"`
		Unit   number `xml:"unit,attr"`
	} `xml:"address"`
	Tune struct {
		IOPS         number `xml:"total_iops_sec"`
		Bytes        number `xml:"total_bytes_sec"`
		BurstIOPS    number `xml:"total_iops_sec_max"`
		BurstBytes   number `xml:"total_bytes_sec_max"`
		IOPSSeconds  number `xml:"total_iops_sec_max_length"`
		BytesSeconds number `xml:"total_bytes_sec_max_length"`
	} `xml:"iotune"`
}

// number is decimal, or hexadecimal with 0x; what is none is 0.
type number int64

func (n *number) UnmarshalText(text []byte) error {
	i, err := strconv.ParseInt(string(text), 0, 64)
	if err == nil {
		*n = number(i)
	}
	return nil
}

// ParseFacts reads a live domain's XML.
func ParseFacts(doc string) (Facts, error) {
	var l live
	if err := xml.Unmarshal([]byte(doc), &l); err != nil {
		return Facts{}, fmt.Errorf("reading domain XML: %w", err)
	}
	f := Facts{Name: l.Name, AgentPTY: -1}
	if ours := l.Metadata.Guests; len(ours) == 1 { // two would be somebody's trick
		m := ours[0]
		m.Record = strings.TrimSpace(m.Record)
		f.Identity = &m.Identity
		f.Hardware = Hardware{Layout: -1, Machine: m.Machine}
		if n, err := strconv.Atoi(m.Layout); err == nil {
			f.Hardware.Layout = n
		}
	}
	for _, c := range l.Channels {
		number, isTerminal := strings.CutPrefix(c.Source.Path, "/dev/pts/")
		if n, err := strconv.ParseUint(number, 10, 31); err == nil && isTerminal && c.Type == "pty" && c.Target.Name == agentPort {
			f.AgentPTY, f.AgentConnected = int(n), c.Target.State == "connected"
		}
	}
	for _, g := range l.Graphics {
		if g.Type == "vnc" && len(g.Listens) > 0 {
			f.Display = g.Listens[0].Socket
		}
	}
	for _, c := range l.Controllers {
		f.scsi = f.scsi || c.Type == "scsi"
	}
	for _, disk := range l.Disks {
		live := disk.live()
		f.taken = append(f.taken, live.at)
		f.Tools = f.Tools || live.Name == "" && disk.Serial == toolsSerial
		if live.Name != "" {
			f.Disks = append(f.Disks, live)
		}
	}
	return f, nil
}

func (d liveDisk) live() LiveDisk {
	live := LiveDisk{
		Alias: d.Alias.Name, Target: d.Target.Dev, CDROM: d.Device == "cdrom", Path: cmp.Or(d.Source.File, d.Source.Dev),
		Limits: Limits{IOPS: int64(d.Tune.IOPS), Bytes: int64(d.Tune.Bytes), BurstIOPS: int64(d.Tune.BurstIOPS), BurstBytes: int64(d.Tune.BurstBytes)},
	}
	if name, ours := strings.CutPrefix(live.Alias, userAlias); ours {
		live.Name = name
	}
	for bus, words := range buses {
		if words.name == d.Target.Bus {
			live.Bus = bus
		}
	}
	// libvirt keeps a length of 1 where a burst was taken back, and QEMU has that one where none was given.
	if live.Limits.BurstIOPS > 0 || live.Limits.BurstBytes > 0 {
		live.Limits.BurstSeconds = int64(max(d.Tune.IOPSSeconds, d.Tune.BytesSeconds, 1))
	}
	slots := map[v1alpha1.DiskBus]number{v1alpha1.BusVirtio: d.Address.Slot, v1alpha1.BusSCSI: d.Address.Target, v1alpha1.BusSATA: d.Address.Unit}
	live.at = Spot{live.Bus, live.Target, place{int(d.Address.Bus), int(slots[live.Bus])}}
	return live
}
