package libvirtd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const kvmDevice = "dev/kvm"

// KVMGroup is the group that may open /dev/kvm on libvirt's host; 0 where there is none.
func (c *Client) KVMGroup() uint32 {
	root, err := c.Root()
	if err != nil {
		return 0
	}
	return groupAt(filepath.Join(root, kvmDevice))
}

// kvmUsable checks that a QEMU that is not root can open /dev/kvm. libvirt, which
// is root, says that KVM works, and then stalls for minutes at every start.
func (c *Client) kvmUsable() error {
	root, err := c.Root()
	if err != nil {
		return err
	}
	if err := checkKVM(filepath.Join(root, kvmDevice)); err != nil {
		return fault.NewTransient(v1alpha1.ReasonKVMUnavailable, err)
	}
	return nil
}

func checkKVM(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("checking /dev/kvm: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != os.ModeDevice|os.ModeCharDevice {
		return errors.New("/dev/kvm is not a device")
	}
	const groupRW, othersRW = 0o060, 0o006
	mode := info.Mode().Perm()
	if mode&othersRW != othersRW && (mode&groupRW != groupRW || owner.Gid == 0) {
		return fmt.Errorf("/dev/kvm has mode %#o and group %d, so the QEMU of a guest, which is not root, cannot open it: chgrp kvm /dev/kvm; chmod 660 /dev/kvm; and install a udev rule that keeps it so", mode, owner.Gid)
	}
	return nil
}
