package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// namespace returns libvirtd's mount namespace. While nobody knows libvirtd it is the one that it had: what is attached
// of a guest can be seen, and detached, without it.
func (v *Volumes) namespace(ctx context.Context) (*os.File, error) {
	v.nsMu.Lock()
	defer v.nsMu.Unlock()
	ns, err := v.namespaceNow(ctx)
	if err != nil && v.ns != nil {
		return v.ns, nil
	}
	if err != nil {
		return nil, err
	}
	if v.ns != nil && sameFile(v.ns, ns) {
		return v.ns, ns.Close()
	}
	v.ns = ns // the one before is closed when the last who works in it is done
	return ns, nil
}

func (v *Volumes) namespaceNow(ctx context.Context) (*os.File, error) {
	pid, err := v.libvirtd(ctx)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(pid)
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, fmt.Errorf("opening the mount namespace of libvirtd: %w", err))
	}
	return ns, nil
}

func openNamespace(pid int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
}

func sameFile(a, b *os.File) bool {
	is, err := a.Stat()
	if err != nil {
		return false
	}
	other, err := b.Stat()
	return err == nil && os.SameFile(is, other)
}

// inNamespace does work on a thread in a mount namespace: its root and its working directory are the namespace's. It
// waits for it, whatever happens: work touches no volume.
func inNamespace[T any](ns *os.File, work func() (T, error)) (T, error) {
	return inNamespaceUntil(context.Background(), ns, nil, work)
}

// inNamespaceUntil is inNamespace for work that may wait for a volume's server, which no signal and no deadline ends. When
// ctx ends first, work goes on by itself, holding its thread, and what it returns then is dropped.
func inNamespaceUntil[T any](ctx context.Context, ns *os.File, drop func(T), work func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go onOwnThread(func() {
		var r result
		if r.err = enter(ns); r.err == nil {
			r.value, r.err = work()
		}
		select {
		case done <- r:
		case <-ctx.Done():
			if r.err == nil && drop != nil {
				drop(r.value)
			}
		}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, fault.NewTransient(v1alpha1.ReasonVolumeMissing,
			fmt.Errorf("waiting for the volume, whose server may not answer: %w", context.Cause(ctx)))
	}
}

// enter moves this thread into a mount namespace. The rest of the process stays where it is.
func enter(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // whoever shares its root with others cannot leave
		return fmt.Errorf("giving a thread its own root: %w", err)
	}
	conn, err := ns.SyscallConn()
	if err != nil {
		return fmt.Errorf("entering mount namespace: %w", err)
	}
	var setErr error
	// Control holds the descriptor: its owner may close it before we are here.
	if err := conn.Control(func(fd uintptr) { setErr = unix.Setns(int(fd), unix.CLONE_NEWNS) }); err != nil {
		return fmt.Errorf("entering mount namespace: %w", err)
	}
	if setErr != nil {
		return fmt.Errorf("entering mount namespace: %w", setErr)
	}
	return nil
}

// onOwnThread does work on a thread that ends with it, so that no other goroutine ever runs where work has gone. The main
// thread cannot end, and the whole process's /proc/self would be its own: it stays out.
func onOwnThread(work func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		work()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(work)
	}()
	<-done
	runtime.UnlockOSThread()
}

// found is a volume as it was found in a berth.
type found struct {
	id identity
	// clone is a mount of a file system that is nowhere yet; nil of a device.
	clone *os.File
}

func (f *found) close() {
	if f.clone != nil {
		_ = f.clone.Close()
	}
}

// look looks for a volume in the mount namespace of the berth's shim, and clones the mount of a file system. Looking up
// the root of a mount of a network file system may ask its server (d_weak_revalidate of the kernel), even for a
// descriptor that opens nothing.
func look(ctx context.Context, host *os.File, shim int, vol Volume) (*found, error) {
	theirs, err := openNamespace(shim)
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonVolumeMissing, fmt.Errorf("opening the mount namespace of the berth: %w", err))
	}
	defer theirs.Close()
	if sameFile(host, theirs) {
		return nil, fault.NewUser(v1alpha1.ReasonVolumeMissing, errors.New("the berth has the mount namespace of the host, want one of its own"))
	}
	return inNamespaceUntil(ctx, theirs, (*found).close, func() (*found, error) {
		fd, err := unix.Openat2(unix.AT_FDCWD, vol.Path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return nil, missing(vol, err.Error())
		}
		defer unix.Close(fd)
		var stat unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &stat); err != nil {
			return nil, missing(vol, err.Error())
		}
		if vol.Block {
			return device(vol, &stat)
		}
		return fileSystem(vol, fd, &stat)
	})
}

func missing(vol Volume, what string) error {
	want := "a mount"
	if vol.Block {
		want = "a block device"
	}
	return fault.NewUser(v1alpha1.ReasonVolumeMissing, fmt.Errorf(
		"the berth has at %s %s, want %s: see what changes the pod (kubectl get mutatingwebhookconfigurations), and restart the VirtualMachine", vol.Path, what, want))
}

func device(vol Volume, stat *unix.Statx_t) (*found, error) {
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, missing(vol, "something else")
	}
	return &found{id: identity{Major: stat.Rdev_major, Minor: stat.Rdev_minor}}, nil
}

func fileSystem(vol Volume, fd int, stat *unix.Statx_t) (*found, error) {
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, missing(vol, "something else")
	case stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0: // of the container's own file system, or another volume's
		return nil, missing(vol, "a directory in which nothing is mounted")
	}
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH) // without what is mounted below
	if err != nil {
		return nil, fmt.Errorf("cloning the mount at %s: %w", vol.Path, err)
	}
	f := &found{id: identity{Major: stat.Dev_major, Minor: stat.Dev_minor, Inode: stat.Ino}, clone: os.NewFile(uintptr(clone), vol.Path)}
	if err := restrict(clone, vol.ReadOnly); err != nil {
		f.close()
		return nil, fmt.Errorf("restricting the mount at %s: %w", vol.Path, err)
	}
	return f, nil
}

// restrict takes from a mount what a disk needs nothing of, and ties it to no other: what is mounted below it in the
// berth never comes after it. Where the kernel can (5.14), no link on it leads anywhere: another pod that has the claim
// could replace the disk by one after it was looked at.
func restrict(mount int, readOnly bool) error {
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW,
		Propagation: unix.MS_PRIVATE,
	}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) {
		attr.Attr_set &^= unix.MOUNT_ATTR_NOSYMFOLLOW
		err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
	}
	return err
}
