package hosttest

import (
	"context"
	"encoding/xml"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// device is a disk as libvirt reads it here.
type device struct {
	Device string `xml:"device,attr"`
	Source struct {
		File string `xml:"file,attr"`
		Dev  string `xml:"dev,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
	Address struct {
		Bus    string `xml:"bus,attr"`
		Slot   string `xml:"slot,attr"`
		Target string `xml:"target,attr"`
		Unit   string `xml:"unit,attr"`
	} `xml:"address"`
	doc string
}

func (d device) file() string { return d.Source.File + d.Source.Dev }

var (
	diskElement     = regexp.MustCompile(`(?s)<disk\b.*?</disk>`)
	tuneElement     = regexp.MustCompile(`(?s)\s*<iotune>.*?</iotune>`)
	metadataElement = regexp.MustCompile(`(?s)<metadata>.*?</metadata>`)
)

// devices are a domain's disks.
func (d *domain) devices() []device {
	var all []device
	for _, doc := range diskElement.FindAllString(d.xml, -1) {
		if disk, err := readDevice(doc); err == nil {
			all = append(all, disk)
		}
	}
	return all
}

func readDevice(doc string) (device, error) {
	d := device{doc: doc}
	err := xml.Unmarshal([]byte(doc), &d)
	return d, err
}

// replace puts a disk in place of another.
func (d *domain) replace(old device, doc string) { d.xml = strings.Replace(d.xml, old.doc, doc, 1) }

// AttachDisk is as libvirtd.Client's.
func (l *Libvirt) AttachDisk(ctx context.Context, id, doc string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	const doing = "plugging a disk into"
	d, err := l.running(ctx, doing, id)
	if err != nil {
		return err
	}
	disk, err := readDevice(doc)
	if err != nil {
		return refused(doing, id, "it is no disk (error 27)")
	}
	for _, other := range d.devices() {
		if other.Target == disk.Target || other.Alias == disk.Alias || other.Target.Bus == disk.Target.Bus && other.Address == disk.Address && disk.Address.Bus != "" {
			return refused(doing, id, "it has that already (error 9)")
		}
	}
	if f := disk.file(); f != "" && !l.h.stored(f) {
		return refused(doing, id, "no file "+f+" (error 38)")
	}
	d.xml = strings.Replace(d.xml, "</devices>", doc+"</devices>", 1)
	d.process.qemu.files = append(d.process.qemu.files, disk.file())
	return nil
}

// DetachDisk is as libvirtd.Client's. A guest lets go while it runs and HoldDisks does not say otherwise.
func (l *Libvirt) DetachDisk(ctx context.Context, id, alias string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	doing := "unplugging " + alias + " from"
	if d, err := l.find(ctx, doing, id); err != nil || d == nil {
		return err
	}
	d, err := l.running(ctx, doing, id)
	if err == nil && slices.ContainsFunc(d.devices(), func(has device) bool { return has.Alias.Name == alias }) {
		d.process.qemu.leaving = append(d.process.qemu.leaving, alias)
		d.letGo()
	}
	return err
}

// letGo is what a guest does that was asked for disks.
func (d *domain) letGo() {
	q := d.process.qemu
	if q.holds || q.state != libvirtd.Running {
		return
	}
	for _, disk := range d.devices() {
		if slices.Contains(q.leaving, disk.Alias.Name) {
			d.replace(disk, "")
			q.close(disk.file())
		}
	}
	q.leaving = nil
}

// close is for a file that a QEMU has open no more.
func (q *qemu) close(file string) {
	if i := slices.Index(q.files, file); i >= 0 {
		q.files = slices.Delete(q.files, i, i+1)
	}
}

// HoldDisks says whether a guest holds the disks that it is asked for, and the media of its CD-ROM drives. It is false if
// there is no such guest.
func (h *Host) HoldDisks(id string, holds bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.domains[id]
	if d == nil {
		return false
	}
	d.process.qemu.holds = holds
	d.letGo()
	return true
}

// ChangeMedium is as libvirtd.Client's.
func (l *Libvirt) ChangeMedium(ctx context.Context, id, doc string, force bool) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	const doing = "changing the medium of"
	d, had, err := l.disk(ctx, doing, id, func(want, has device) bool { return has.Device == "cdrom" && has.Target == want.Target }, doc)
	if err != nil {
		return err
	}
	disk, err := readDevice(doc)
	switch {
	case err != nil:
		return fmt.Errorf("%s domain %s: %w", doing, id, err)
	case disk.file() == had.file():
		return nil
	case disk.file() != "" && !l.h.stored(disk.file()):
		return refused(doing, id, "no file "+disk.file()+" (error 38)")
	case had.file() != "" && d.process.qemu.holds && !force:
		return refused(doing, id, "the guest holds the medium (error 9)")
	}
	d.replace(had, doc)
	d.process.qemu.close(had.file())
	d.process.qemu.files = append(d.process.qemu.files, disk.file())
	return nil
}

// disk finds the disk of a running domain that is the one of this description.
func (l *Libvirt) disk(ctx context.Context, doing, id string, is func(want, has device) bool, doc string) (*domain, device, error) {
	d, err := l.running(ctx, doing, id)
	if err != nil {
		return nil, device{}, err
	}
	want, err := readDevice(doc)
	if err != nil {
		return nil, device{}, refused(doing, id, "it is no disk (error 27)")
	}
	all := d.devices()
	i := slices.IndexFunc(all, func(has device) bool { return is(want, has) })
	if i < 0 {
		return nil, device{}, refused(doing, id, "it has no such disk (error 8)")
	}
	return d, all[i], nil
}

// SetDiskLimits is as libvirtd.Client's.
func (l *Libvirt) SetDiskLimits(ctx context.Context, id, target string, limits libvirtd.DiskLimits) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, had, err := l.disk(ctx, "limiting a disk of", id, func(_, has device) bool { return has.Target.Dev == target }, "<disk/>")
	if err != nil {
		return err
	}
	doc := tuneElement.ReplaceAllString(had.doc, "")
	var tune strings.Builder
	for _, field := range []struct {
		name  string
		value int64
		burst int64 // of a length
	}{
		{"total_bytes_sec", limits.Bytes, 1},
		{"total_iops_sec", limits.IOPS, 1},
		{"total_bytes_sec_max", limits.BurstBytes, 1},
		{"total_iops_sec_max", limits.BurstIOPS, 1},
		{"total_bytes_sec_max_length", limits.BurstSeconds, limits.BurstBytes},
		{"total_iops_sec_max_length", limits.BurstSeconds, limits.BurstIOPS},
	} {
		if field.value > 0 && field.burst > 0 {
			fmt.Fprintf(&tune, "<%s>%d</%[1]s>", field.name, field.value)
		}
	}
	if tune.Len() > 0 {
		doc = strings.Replace(doc, "</disk>", "<iotune>"+tune.String()+"</iotune></disk>", 1)
	}
	d.replace(had, doc)
	return nil
}

// SetMetadata is as libvirtd.Client's, of a domain that has no other metadata.
func (l *Libvirt) SetMetadata(ctx context.Context, id, doc string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	var any struct{}
	if err := xml.Unmarshal([]byte(doc), &any); err != nil {
		return fmt.Errorf("reading metadata: %w", err)
	}
	d, err := l.running(ctx, "changing the metadata of", id)
	if err != nil {
		return err
	}
	d.xml = metadataElement.ReplaceAllString(d.xml, "")
	d.xml = strings.Replace(d.xml, "</uuid>", "</uuid><metadata>"+doc+"</metadata>", 1)
	return nil
}

// BlockStats is as libvirtd.Client's, of disks that nobody has used.
func (l *Libvirt) BlockStats(ctx context.Context) (map[string][]libvirtd.BlockStats, error) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if err := l.reach(ctx); err != nil {
		return nil, fmt.Errorf("querying the disks of all domains: %w", err)
	}
	all := map[string][]libvirtd.BlockStats{}
	for id, d := range l.h.domains {
		all[id] = nil
		for _, disk := range d.devices() {
			all[id] = append(all[id], libvirtd.BlockStats{Target: disk.Target.Dev})
		}
	}
	return all, nil
}
