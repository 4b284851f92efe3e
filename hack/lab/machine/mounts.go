package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// controlPath is the socket of a machine's init, in the machine.
const controlPath = "/run/lab-init.sock"

// device is a device node of a machine.
type device struct {
	name         string
	major, minor uint32
	mode         uint32
	group        string
	optional     bool // only where the machine below has it
}

var devices = []device{
	{name: "null", major: 1, minor: 3, mode: 0o666},
	{name: "zero", major: 1, minor: 5, mode: 0o666},
	{name: "full", major: 1, minor: 7, mode: 0o666},
	{name: "random", major: 1, minor: 8, mode: 0o666},
	{name: "urandom", major: 1, minor: 9, mode: 0o666},
	{name: "kmsg", major: 1, minor: 11, mode: 0o644},
	{name: "tty", major: 5, minor: 0, mode: 0o666},
	{name: "net/tun", major: 10, minor: 200, mode: 0o666},
	{name: "loop-control", major: 10, minor: 237, mode: 0o660, optional: true},
	{name: "vhost-net", major: 10, minor: 238, mode: 0o660, group: "kvm", optional: true},
	// QEMU's user is in this group. The machine's own node may well be root's only.
	{name: "kvm", major: 10, minor: 232, mode: 0o660, group: "kvm", optional: true},
}

// mountAll gives the machine that this process is in its own view of files.
func mountAll(dir Dir, s Spec) error {
	groups, err := hierarchies() // read before /sys is hidden
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("separating mounts: %w", err)
	}
	for _, path := range s.Private {
		if err := unix.Mount(dir.PrivatePath(path), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("making %s private: %w", path, err)
		}
	}
	for _, m := range []struct{ fstype, path, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.fstype, m.path, m.fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	if err := mountCgroups(groups); err != nil {
		return err
	}
	if err := mountDevices(exists); err != nil {
		return err
	}
	for path, value := range s.Shields {
		shield := filepath.Join("/run", "shield", path)
		if err := os.MkdirAll(filepath.Dir(shield), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(shield, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(shield, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("shielding %s: %w", path, err)
		}
	}
	// kubelet and the agent hand mounts to containers and back.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// MakeMountPoints makes those directories that this host lacks, and notes them in record.
func MakeMountPoints(paths []string, record string) error {
	var made strings.Builder
	for _, path := range paths {
		for p := path; !exists(p); p = filepath.Dir(p) {
			fmt.Fprintln(&made, p)
		}
	}
	if made.Len() == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(record), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(made.String())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// RemoveMountPoints removes what MakeMountPoints made, unless something is in it by now.
func RemoveMountPoints(record string) error {
	raw, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	paths := strings.Fields(string(raw))
	sort.Slice(paths, func(i, j int) bool { return len(paths[i]) > len(paths[j]) })
	for _, path := range paths {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// loopDevices that a machine has nodes of. The devices are the machine below's, and made by the kernel when they are needed.
const loopDevices = 128

// mountDevices makes a /dev of the machine's own. present tells what the old one has.
func mountDevices(present func(string) bool) error {
	var wanted []device
	for _, d := range devices {
		if !d.optional || present(filepath.Join("/dev", d.name)) {
			wanted = append(wanted, d)
		}
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return fmt.Errorf("mounting /dev: %w", err)
	}
	for i := range loopDevices {
		path := fmt.Sprintf("/dev/loop%d", i)
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(i)))); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
	}
	for _, d := range wanted {
		path := filepath.Join("/dev", d.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
		if err := os.Chmod(path, os.FileMode(d.mode)); err != nil {
			return err
		}
		if d.group == "" {
			continue
		}
		group, err := user.LookupGroup(d.group)
		if err != nil {
			continue // nobody there to hand it to
		}
		gid, err := strconv.Atoi(group.Gid)
		if err != nil {
			return err
		}
		if err := os.Chown(path, 0, gid); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", link)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ fstype, path, options string }{
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"mqueue", "/dev/mqueue", ""},
	} {
		if err := os.Mkdir(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.path, m.fstype, unix.MS_NOSUID|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	return nil
}
