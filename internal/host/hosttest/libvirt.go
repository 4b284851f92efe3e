package hosttest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// KVMGroup is the group of the host's /dev/kvm.
const KVMGroup = 108

// libvirtGroup is where libvirt leaves the QEMUs that it starts.
var libvirtGroup = mustParse("0::/machine/qemu")

var errDown = fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, errors.New("libvirtd does not answer: start it"))

// Libvirt is the host's libvirtd, as a libvirtd.Client sees it.
type Libvirt struct{ h *Host }

// domain is libvirt's record of a QEMU, which may have ended.
type domain struct {
	name, xml string
	id        int32
	resets    libvirtd.Resets
	process   *proc
	// agent answers for the guest agent; nil while none is connected.
	agent func(command string) (string, error)
	// backup is the one that goes on, or has ended and nobody was told; nil if there is none.
	backup *backupJob
}

// reset takes note of a reset.
func (d *domain) reset(at time.Time) {
	d.resets.Count++
	copy(d.resets.Latest[1:], d.resets.Latest[:])
	d.resets.Latest[0] = at
}

// now is what libvirt says of the domain, without its XML.
func (d *domain) now() libvirtd.Domain {
	q := d.process.qemu
	return libvirtd.Domain{Exists: true, Name: d.name, ID: d.id, State: q.state, Pause: q.pause, Resets: d.resets}
}

// description is what libvirt reads of a domain's XML here.
type description struct {
	Name   string `xml:"name"`
	UUID   string `xml:"uuid"`
	Type   string `xml:"os>type"`
	Kernel string `xml:"os>kernel"`
	Initrd string `xml:"os>initrd"`
	Disks  []struct {
		File   string `xml:"file,attr"`
		Device string `xml:"dev,attr"`
	} `xml:"devices>disk>source"`
	Interfaces []struct {
		Tap string `xml:"dev,attr"`
	} `xml:"devices>interface>target"`
	Serials  []chardev `xml:"devices>serial"`
	Channels []chardev `xml:"devices>channel"`
	Displays []struct {
		Path string `xml:"socket,attr"`
	} `xml:"devices>graphics>listen"`
	Label string `xml:"seclabel>label"` // as +user:+group
}

// chardev is a serial port or a channel.
type chardev struct {
	Type   string `xml:"type,attr"`
	Source struct {
		Path string `xml:"path,attr"`
	} `xml:"source"`
}

// sockets are those that libvirt and QEMU make.
func (d *description) sockets() (paths []string) {
	for _, c := range append(d.Serials, d.Channels...) {
		if c.Type == "unix" {
			paths = append(paths, c.Source.Path)
		}
	}
	for _, g := range d.Displays {
		paths = append(paths, g.Path)
	}
	return paths
}

func (d *description) user() uint32 {
	user, _, _ := strings.Cut(strings.TrimPrefix(d.Label, "+"), ":")
	n, err := strconv.ParseUint(user, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func (d *description) files() []string {
	var files []string
	for _, f := range append([]string{d.Kernel, d.Initrd}, d.diskFiles()...) {
		if f != "" {
			files = append(files, f)
		}
	}
	return files
}

func (d *description) diskFiles() (files []string) {
	for _, disk := range d.Disks {
		files = append(files, disk.File+disk.Device)
	}
	return files
}

func (l *Libvirt) reach(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, err)
	}
	if l.h.libvirtDown {
		return errDown
	}
	return nil
}

// find returns libvirt's record of a domain, nil if it has none.
func (l *Libvirt) find(ctx context.Context, doing, id string) (*domain, error) {
	if _, err := uuid.Parse(id); err != nil {
		return nil, fmt.Errorf("reading domain's UUID: %w", err)
	}
	if err := l.reach(ctx); err != nil {
		return nil, fmt.Errorf("%s domain %s: %w", doing, id, err)
	}
	return l.h.domains[id], nil
}

// running is find for what needs a domain with a QEMU that answers.
func (l *Libvirt) running(ctx context.Context, doing, id string) (*domain, error) {
	d, err := l.find(ctx, doing, id)
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		return nil, fmt.Errorf("%s domain %s: %w", doing, id, fault.NewTransient(v1alpha1.ReasonNotRunning, errors.New("libvirt: no domain with matching uuid (error 42)")))
	case d.process.qemu.cause != "":
		return nil, refused(doing, id, "the monitor is closed")
	}
	return d, nil
}

func refused(doing, what, why string) error {
	return fmt.Errorf("%s domain %s: %w", doing, what, fault.NewTransient(v1alpha1.ReasonLibvirtRefused, errors.New("libvirt: "+why)))
}

// Domain is as libvirtd.Client's.
func (l *Libvirt) Domain(ctx context.Context, id string) (libvirtd.Domain, error) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.find(ctx, "looking up", id)
	if err != nil {
		return libvirtd.Domain{}, err
	}
	if wrong, ok := l.h.answers[id]; ok {
		delete(l.h.answers, id)
		return wrong, nil
	}
	if d == nil {
		return libvirtd.Domain{}, nil
	}
	found := d.now()
	found.XML = d.xml
	return found, nil
}

// States is as libvirtd.Client's.
func (l *Libvirt) States(ctx context.Context) (map[string]libvirtd.Domain, error) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if err := l.reach(ctx); err != nil {
		return nil, fmt.Errorf("asking what domains do: %w", err)
	}
	all := make(map[string]libvirtd.Domain, len(l.h.domains))
	for id, d := range l.h.domains {
		all[id] = d.now()
	}
	return all, nil
}

// ExitCause is as libvirtd.Client's. Nothing has a message.
func (l *Libvirt) ExitCause(id, _ string) (libvirtd.Exit, bool) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	stop, ok := l.h.stops[id]
	return stop, ok
}

// RemoveLogs is as libvirtd.Client's.
func (l *Libvirt) RemoveLogs(name string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if l.h.libvirtDown {
		return errDown
	}
	delete(l.h.logs, name)
	return nil
}

// HasLog tells whether there is a log of the domain.
func (h *Host) HasLog(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.logs[name]
}

// KVMGroup is as libvirtd.Client's.
func (l *Libvirt) KVMGroup() uint32 {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if l.h.libvirtDown {
		return 0
	}
	return KVMGroup
}

// CreatePaused is as libvirtd.Client's: it starts a QEMU whose CPUs are halted, with its console and taps, in a cgroup of
// libvirt's. Like a real one it knows of no QEMU that it has no record of. Of the disks, kernels and seeds that it names,
// all must be in the Store.
func (l *Libvirt) CreatePaused(ctx context.Context, doc string) error {
	var d description
	if err := xml.Unmarshal([]byte(doc), &d); err != nil {
		return fmt.Errorf("reading the domain to start: %w", err)
	}
	if d.Name == "" || d.UUID == "" {
		return errors.New("the domain to start has no name or no UUID")
	}
	h := l.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := l.reach(ctx); err != nil {
		return fmt.Errorf("starting domain %s: %w", d.Name, err)
	}
	if had, ok := h.domains[d.UUID]; ok && had.name == d.Name {
		return nil
	} else if ok {
		return refused("starting", d.Name, "a domain of another name has its UUID (error 55)")
	}
	for id, other := range h.domains {
		if other.name == d.Name {
			return fault.NewUser(v1alpha1.ReasonDomainNameTaken, fmt.Errorf("the host has another domain named %s, with UUID %s", d.Name, id))
		}
	}
	if d.Type == "" {
		return fault.NewUser(v1alpha1.ReasonLibvirtRefused, fmt.Errorf("starting domain %s: libvirt: it has no OS type (error 27)", d.Name))
	}
	files := d.files()
	for _, f := range files {
		if !h.stored(f) {
			return refused("starting", d.Name, "no file "+f+" (error 38)")
		}
		if len(h.qemus[d.UUID]) == 0 && h.locked(f) {
			return refused("starting", d.Name, `failed to get "write" lock of `+f+" (error 1)")
		}
	}
	if len(h.qemus[d.UUID]) > 0 {
		h.breach("a second QEMU of %s was started", d.UUID)
	}
	h.start(&d, doc, files)
	return nil
}

// start makes a domain with its QEMU and what libvirt makes for it.
func (h *Host) start(d *description, doc string, files []string) {
	p := h.newProcess(libvirtGroup, "")
	p.qemu = &qemu{
		sizes: map[string]int64{},
		uuid:  d.UUID, user: d.user(), files: files, helper: h.newProcess(libvirtGroup, ""),
		state: libvirtd.Paused, pause: libvirtd.PausedByUser,
	}
	h.qemus[d.UUID] = append(h.qemus[d.UUID], p)
	for _, i := range d.Interfaces {
		p.qemu.taps = append(p.qemu.taps, i.Tap)
		h.taps[i.Tap] = ""
	}
	for _, path := range d.sockets() {
		p.qemu.files = append(p.qemu.files, path)
		h.sockets[path] = p
	}
	h.lastID++
	doc = strings.Replace(doc, `<channel type="pty">`, fmt.Sprintf(`<channel type="pty"><source path="/dev/pts/%d"/>`, h.lastID), 1)
	h.domains[d.UUID] = &domain{name: d.Name, xml: doc, id: h.lastID, process: p}
	h.logs[d.Name] = true
	delete(h.stops, d.UUID)
}

// Resume is as libvirtd.Client's.
func (l *Libvirt) Resume(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.running(ctx, "resuming", id)
	if err != nil {
		return err
	}
	d.process.qemu.state, d.process.qemu.pause = libvirtd.Running, ""
	d.letGo()
	return nil
}

// Suspend is as libvirtd.Client's.
func (l *Libvirt) Suspend(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.running(ctx, "suspending", id)
	if err == nil && d.process.qemu.state != libvirtd.Paused {
		d.process.qemu.state, d.process.qemu.pause = libvirtd.Paused, libvirtd.PausedByUser
	}
	return err
}

// Shutdown is as libvirtd.Client's. What the guest makes of it is the test's to say.
func (l *Libvirt) Shutdown(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if d, err := l.find(ctx, "shutting down", id); err != nil || d == nil {
		return err
	}
	d, err := l.running(ctx, "shutting down", id)
	if err != nil {
		return err
	}
	d.process.qemu.shutdownAsked = true
	return nil
}

// Destroy is as libvirtd.Client's.
func (l *Libvirt) Destroy(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.unlock()
	d, err := l.find(ctx, "destroying", id)
	if err == nil && d != nil {
		l.h.end(d.process, libvirtd.CauseDestroyed)
		l.h.forget(id, libvirtd.CauseDestroyed)
	}
	return err
}

// Reset is as libvirtd.Client's. The guest begins anew at once.
func (l *Libvirt) Reset(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.running(ctx, "resetting", id)
	if err == nil {
		d.reset(time.Now())
	}
	return err
}

// InjectNMI is as libvirtd.Client's. What the guest makes of it is the test's to say.
func (l *Libvirt) InjectNMI(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.running(ctx, "injecting an NMI into", id)
	if err == nil {
		d.process.qemu.nmis++
	}
	return err
}

// ResizeDisk is as libvirtd.Client's. DiskSize tells of it.
func (l *Libvirt) ResizeDisk(ctx context.Context, id, path string, size int64) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.running(ctx, "resizing a disk of", id)
	if err == nil && !strings.Contains(d.xml, `"`+path+`"`) {
		err = fmt.Errorf("domain %s has no disk %s", id, path)
	}
	if err == nil {
		d.process.qemu.sizes[path] = size
	}
	return err
}

// DiskSize is what ResizeDisk last said of a guest's disk, in bytes; 0 if it said nothing.
func (h *Host) DiskSize(id, path string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.domains[id]; d != nil {
		return d.process.qemu.sizes[path]
	}
	return 0
}

// forget ends a domain. Who saw its guest panic knows that this was its end.
func (h *Host) forget(id string, cause libvirtd.Cause) {
	if h.domains[id].process.qemu.state == libvirtd.Crashed {
		cause = libvirtd.CausePanicked
	}
	delete(h.domains, id)
	h.stops[id] = libvirtd.Exit{Cause: cause, Time: time.Now()}
}
