package domain

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
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
	switch n := g.NIC; {
	case !g.Hardware.HasLayout() || g.Hardware.Machine == "":
		return fmt.Errorf("layout %d on machine type %q: one is not known", g.Hardware.Layout, g.Hardware.Machine)
	case g.CPU.Sockets < 1 || g.CPU.Cores < 1 || g.CPU.Threads < 1:
		return errors.New("a guest has at least one CPU")
	case g.Memory < kibi:
		return errors.New("a guest has memory")
	case g.UID == 0 || g.GID == 0:
		return errors.New("QEMU must not run as root")
	case len(g.Disks) > MaxDisks:
		return fmt.Errorf("%d disks, %d at most", len(g.Disks), MaxDisks)
	case n != nil && (n.Tap == "" || len(n.Tap) > maxTapName || strings.ContainsRune(n.Tap, '%') || len(n.MAC) != 6):
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
	sata := 0
	for _, disk := range g.Disks {
		if err := disk.check(); err != nil {
			return err
		}
		if disk.bus() == v1alpha1.BusSATA {
			sata++
		}
	}
	if sata > maxSATA {
		return fmt.Errorf("%d SATA disks, %d at most", sata, maxSATA)
	}
	return checkTexts(g.paths(), g.texts()...)
}

// paths are all paths but the disks' that are set, or must be.
func (g Guest) paths() []string {
	paths, optional := g.sockets(), []string{g.Seed, g.Tools, g.Ignition, g.Partition}
	if k := g.Kernel; k != nil {
		paths, optional = append(paths, k.Path), append(optional, k.Initrd)
	}
	return append(paths, slices.DeleteFunc(optional, func(p string) bool { return p == "" })...)
}

// sockets are the paths of all sockets that the guest has.
func (g Guest) sockets() []string {
	sockets := []string{g.Console, g.GuestPort, g.ExitPort}
	if g.Display != nil {
		sockets = append(sockets, g.Display.Socket)
	}
	return sockets
}

// texts are all others.
func (g Guest) texts() []string {
	texts := []string{g.Name, g.Hardware.Machine, g.CPU.Model, g.Identity.Namespace, g.Identity.Name, g.Identity.VM, g.Identity.Berth, g.Identity.Record}
	if g.Kernel != nil {
		texts = append(texts, g.Kernel.CommandLine)
	}
	if g.NIC != nil {
		texts = append(texts, g.NIC.Tap)
	}
	return texts
}

func checkTexts(paths []string, others ...string) error {
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p {
			return fmt.Errorf("%q is not a clean absolute path", p)
		}
	}
	bad := func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError || r == 0xfffe || r == 0xffff }
	for _, s := range slices.Concat(paths, others) {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, bad) {
			return fmt.Errorf("%q holds a character that XML cannot say", s)
		}
	}
	return nil
}
