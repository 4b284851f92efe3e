package volume

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// An access control list of POSIX as the kernel has it in an extended attribute (linux/posix_acl_xattr.h): a version,
// and entries of a tag, permissions and a user or group.
const (
	aclXattr   = "system.posix_acl_access"
	aclVersion = 2
	aclHeader  = 4
	aclSize    = 8 // of an entry, in bytes
	aclNoID    = ^uint32(0)

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	permRead, permWrite, permPass, permAll = 4, 2, 1, 7
)

type aclEntry struct {
	Tag, Perm uint16
	ID        uint32 // of a user or a group
}

type acl []aclEntry

func (l acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range l {
		if e.Tag != aclUser && e.Tag != aclGroup {
			e.ID = aclNoID
		}
		b, _ = binary.Append(b, binary.LittleEndian, e) // numbers never fail
	}
	return b
}

func decodeACL(b []byte) (acl, error) {
	if len(b) < aclHeader || (len(b)-aclHeader)%aclSize != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, fmt.Errorf("an access control list of %d bytes is not of version %d", len(b), aclVersion)
	}
	l := make(acl, (len(b)-aclHeader)/aclSize)
	_, err := binary.Decode(b[aclHeader:], binary.LittleEndian, l)
	return l, err
}

// ofMode is the list that a file has without one.
func ofMode(mode fs.FileMode) acl {
	m := uint16(mode.Perm()) //nolint:gosec // nine bits
	return acl{{Tag: aclUserObj, Perm: m >> 6}, {Tag: aclGroupObj, Perm: m >> 3 & 7}, {Tag: aclOther, Perm: m & 7}}
}

// grant gives a group permissions beside those that it has, and tells whether it did not have them. Entries are in the
// order of their tags and numbers, as the kernel asks, and the mask lets all of them through. Nobody else gains anything.
func (l acl) grant(group uint32, perm uint16) (acl, bool) {
	mask, other, mine, named := uint16(permAll), uint16(0), aclEntry{Tag: aclGroup, ID: group}, false
	for _, e := range l {
		switch {
		case e.Tag == aclMask:
			mask = e.Perm
		case e.Tag == aclOther:
			other = e.Perm
		case e.Tag == mine.Tag && e.ID == mine.ID:
			mine, named = e, true
		}
	}
	mine.Perm &= mask
	if mine.Perm&perm == perm || !named && other&perm == perm {
		return l, false
	}
	mine.Perm |= perm
	wider, all := acl{mine}, mine.Perm
	for _, e := range l {
		switch {
		case e.Tag == aclMask || e.Tag == mine.Tag && e.ID == mine.ID:
			continue
		case e.Tag == aclUser || e.Tag == aclGroupObj || e.Tag == aclGroup:
			e.Perm &= mask // what the mask kept from others, they do not get with ours
			all |= e.Perm
		}
		wider = append(wider, e)
	}
	wider = append(wider, aclEntry{Tag: aclMask, Perm: all})
	slices.SortFunc(wider, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.ID, b.ID)) })
	return wider, true
}

func readACL(path string) (acl, error) {
	b := make([]byte, 1<<16) // XATTR_SIZE_MAX of linux/limits.h
	n, err := unix.Getxattr(path, aclXattr, b)
	if err == nil {
		return decodeACL(b[:n])
	}
	if !errors.Is(err, unix.ENODATA) {
		return nil, pathError("getxattr", path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return ofMode(info.Mode()), nil
}

func writeACL(path string, l acl) error {
	return pathError("setxattr", path, unix.Setxattr(path, aclXattr, l.encode(), 0))
}

// Grant lets QEMUs of a group use KVM and pass to libvirt's state, which only QEMU's usual group may: libvirt gives a QEMU
// with a label of its own no further group. What is not there is not needed: QEMU emulates, or keeps its state elsewhere.
// libvirt copies the list of /dev/kvm into QEMU's own /dev at each start; udev may have it go, so it is granted before
// each start.
func (v *Volumes) Grant(ctx context.Context, group int) error {
	return v.inside(ctx, func() error {
		for path, perm := range map[string]uint16{"/dev/kvm": permRead | permWrite, "/var/lib/libvirt/qemu": permPass} {
			have, err := readACL(path)
			if want, differs := have.grant(uint32(group), perm); err == nil && differs { //nolint:gosec // a group's number
				err = writeACL(path, want)
			}
			if ifThere(err) != nil {
				return fmt.Errorf("granting group %d %s: %w", group, path, err)
			}
		}
		return nil
	})
}
