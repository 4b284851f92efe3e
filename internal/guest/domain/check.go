package domain

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

const (
	maxSocketPath = 107 // sun_path of unix(7), less the NUL
	maxTapName    = 15  // IFNAMSIZ - 1
	maxSerial     = 20  // virtio-blk's serial number
)

// check refuses what XML or libvirt would silently read as something else: encoding/xml replaces characters that XML cannot say.
func (g Guest) check() error {
	id, err := uuid.Parse(g.UUID)
	if err != nil || id.String() != g.UUID {
		return fmt.Errorf("%q is not a UUID", g.UUID)
	}
	if l := g.Hardware.Layout; l < 0 || l > NewestLayout || g.Hardware.Machine == "" {
		return fmt.Errorf("layout %d on machine type %q, at most %d on any", l, g.Hardware.Machine, NewestLayout)
	}
	if g.CPU.Sockets < 1 || g.CPU.Cores < 1 || g.CPU.Threads < 1 {
		return errors.New("a guest has at least one CPU")
	}
	if g.Memory < kibi {
		return errors.New("a guest has memory")
	}
	if g.UID == 0 || g.GID == 0 {
		return errors.New("QEMU must not run as root")
	}
	if len(g.Disks) > MaxDisks {
		return fmt.Errorf("%d disks, %d at most", len(g.Disks), MaxDisks)
	}
	if n := g.NIC; n != nil && (n.Tap == "" || len(n.Tap) > maxTapName || strings.ContainsRune(n.Tap, '%') || len(n.MAC) != 6) {
		return fmt.Errorf("tap %q with MAC %q", n.Tap, n.MAC)
	}
	for _, socket := range g.sockets() {
		if len(socket) > maxSocketPath {
			return fmt.Errorf("the socket's path %s has %d bytes, %d at most", socket, len(socket), maxSocketPath)
		}
	}
	if d := g.Display; d != nil && displays[d.Type] == "" {
		return fmt.Errorf("a display of type %q", d.Type)
	}
	for _, disk := range g.Disks {
		if len(disk.Name) > maxSerial {
			return fmt.Errorf("the disk's name %q has more than %d characters", disk.Name, maxSerial)
		}
		for _, b := range disk.Backing {
			if b.Format != Raw && b.Format != QCOW2 {
				return fmt.Errorf("%s has format %q", b.Path, b.Format)
			}
		}
	}
	for _, p := range g.paths() {
		if !path.IsAbs(p) || path.Clean(p) != p {
			return fmt.Errorf("%q is not a clean absolute path", p)
		}
	}
	return checkText(g.texts()...)
}

// paths are all paths that are set, or must be.
func (g Guest) paths() []string {
	paths := g.sockets()
	for _, optional := range []string{g.Seed, g.Tools, g.Partition} {
		if optional != "" {
			paths = append(paths, optional)
		}
	}
	if k := g.Kernel; k != nil {
		paths = append(paths, k.Path)
		if k.Initrd != "" {
			paths = append(paths, k.Initrd)
		}
	}
	for _, disk := range g.Disks {
		paths = append(paths, disk.Path)
		for _, b := range disk.Backing {
			paths = append(paths, b.Path)
		}
	}
	return paths
}

// sockets are the paths of all sockets that the guest has.
func (g Guest) sockets() []string {
	sockets := []string{g.Console, g.GuestPort, g.ExitPort}
	if g.Display != nil {
		sockets = append(sockets, g.Display.Socket)
	}
	return sockets
}

func (g Guest) texts() []string {
	texts := append(g.paths(), g.Name, g.Hardware.Machine, g.CPU.Model, g.Identity.Namespace, g.Identity.Name, g.Identity.VM, g.Identity.Berth, g.Identity.Record)
	if g.Kernel != nil {
		texts = append(texts, g.Kernel.CommandLine)
	}
	if g.NIC != nil {
		texts = append(texts, g.NIC.Tap)
	}
	for _, disk := range g.Disks {
		texts = append(texts, disk.Name)
	}
	return texts
}

func checkText(texts ...string) error {
	bad := func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError || r == 0xfffe || r == 0xffff }
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, bad) {
			return fmt.Errorf("%q holds a character that XML cannot say", s)
		}
	}
	return nil
}
