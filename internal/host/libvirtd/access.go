package libvirtd

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	kvmDevice = "dev/kvm"
	// stateDir is where libvirt gives every domain a directory, which its QEMU must be able to read.
	stateDir = "var/lib/libvirt/qemu"
)

// KVMGroup is the group that may open /dev/kvm on libvirt's host; 0 where there is none.
func (c *Client) KVMGroup() uint32 {
	root, err := c.Root()
	if err != nil {
		return 0
	}
	return groupAt(filepath.Join(root, kvmDevice))
}

// groupAt is a file's group, root's if that cannot be known.
func groupAt(path string) uint32 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Gid
}

// kvmUsable checks that a QEMU that is not root can open /dev/kvm. libvirt, which
// is root, says that KVM works, and then stalls for minutes at every start.
func (c *Client) kvmUsable() error {
	root, err := c.Root()
	if err != nil {
		return err
	}
	return fault.NewTransient(v1alpha1.ReasonKVMUnavailable, checkKVM(filepath.Join(root, kvmDevice)))
}

func checkKVM(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("checking /dev/kvm: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("/dev/kvm is not a device")
	}
	const groupRW, othersRW = 0o060, 0o006
	if st.Mode&othersRW != othersRW && (st.Mode&groupRW != groupRW || st.Gid == 0) {
		return fmt.Errorf("/dev/kvm has mode %#o and group %d, so the QEMU of a guest, which is not root, cannot open it: chgrp kvm /dev/kvm; chmod 660 /dev/kvm; and install a udev rule that keeps it so", st.Mode&0o777, st.Gid)
	}
	return nil
}

// checkStateDir checks that a QEMU with a user of its own, and this group, gets through to its domain's
// directory. Debian's packages make the one above it for their own user's QEMUs alone, and then every QEMU ends as it
// starts; Ubuntu's let that group through.
func checkStateDir(path string, group uint32) error {
	const pass, groupPass = 0o001, 0o010
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist): // libvirt is about to make it, or keeps it elsewhere
		return nil
	case err != nil:
		return fmt.Errorf("checking /%s: %w", stateDir, err)
	case st.Mode&pass == 0 && (st.Mode&groupPass == 0 || group == 0 || st.Gid != group):
		return fmt.Errorf("/%s has mode %#o, so the QEMU users of guests cannot traverse it", stateDir, st.Mode&0o777)
	}
	return nil
}
