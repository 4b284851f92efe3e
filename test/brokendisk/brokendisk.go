package brokendisk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Disk is a file system that can be broken.
type Disk struct {
	at     string
	server *fuse.Server
	broken atomic.Bool
	before atomic.Pointer[func(change string) bool]
}

// Mount mounts the files of one directory at another.
func Mount(directory, at string) (*Disk, error) {
	d := &Disk{at: at}
	root := &fs.LoopbackRoot{Path: directory, NewNode: func(root *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: root}, disk: d}
	}}
	top := &node{LoopbackNode: fs.LoopbackNode{RootData: root}, disk: d}
	root.RootNode = top
	var err error
	d.server, err = fs.Mount(at, top, &fs.Options{MountOptions: fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, Options: []string{"default_permissions"}, FsName: "brokendisk",
	}})
	if err != nil {
		return nil, fmt.Errorf("mounting %s: %w", at, err)
	}
	return d, nil
}

// Break has all that reads or writes fail with EIO, or nothing any more. What the kernel has cached stays.
func (d *Disk) Break(is bool) { d.broken.Store(is) }

// Before has each change to the disk asked for first: the first that is refused breaks it. A change is the call's name,
// and a write's place: "write 0 512".
func (d *Disk) Before(may func(change string) bool) { d.before.Store(&may) }

// Unmount ends the disk, even for those who have files of it open.
func (d *Disk) Unmount() error {
	err := syscall.Unmount(d.at, syscall.MNT_DETACH|syscall.MNT_FORCE)
	if err == nil {
		d.server.Wait()
	}
	return err
}

// Orders.
const (
	Break  = "break"
	Repair = "repair"
)

// Serve is a disk for another process, until the end of its orders. It repeats each order, a line, once it is carried out.
func Serve(directory, at string, orders io.Reader, tell io.Writer) (err error) {
	d, err := Mount(directory, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Unmount()) }()
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		d.Break(lines.Text() == Break)
		if _, err := fmt.Fprintln(tell, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (d *Disk) errno() syscall.Errno {
	if d.broken.Load() {
		return syscall.EIO
	}
	return 0
}

// change is asked for before anything on the disk changes.
func (d *Disk) change(what string) syscall.Errno {
	if may := d.before.Load(); may != nil && !d.broken.Load() && !(*may)(what) {
		d.Break(true)
	}
	return d.errno()
}

// file fails with its disk.
func (d *Disk) file(h fs.FileHandle) fs.FileHandle {
	if f, ok := h.(*fs.LoopbackFile); ok {
		return &file{f, d}
	}
	return h
}

type node struct {
	fs.LoopbackNode
	disk    *Disk
	unnamed *fs.LoopbackFile // of a file that has no name yet, and so no path either
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.errno(); errno != 0 {
		return nil, 0, errno
	}
	h, flags, errno := n.LoopbackNode.Open(ctx, flags)
	return n.disk.file(h), flags, errno
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.errno(); errno != 0 {
		return nil, 0, errno
	}
	return n.LoopbackNode.OpendirHandle(ctx, flags)
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.change("create"); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, h, flags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.disk.file(h), flags, errno
}

func (n *node) Tmpfile(ctx context.Context, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.change("tmpfile"); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, h, flags, errno := n.LoopbackNode.Tmpfile(ctx, flags, mode, out)
	if errno == 0 {
		inode.Operations().(*node).unnamed = h.(*fs.LoopbackFile)
	}
	return inode, n.disk.file(h), flags, errno
}

func (n *node) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if errno := n.disk.change("setattr"); errno != 0 {
		return errno
	}
	if n.unnamed != nil {
		h = n.unnamed
	}
	return n.LoopbackNode.Setattr(ctx, h, in, out)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.disk.change("link"); errno != 0 {
		return nil, errno
	}
	file := target.(*node)
	if file.unnamed == nil {
		return n.LoopbackNode.Link(ctx, target, name, out)
	}
	fd, open := file.unnamed.PassthroughFd()
	if !open {
		return nil, syscall.EBADF
	}
	path := filepath.Join(n.RootData.Path, n.Path(nil), name)
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return nil, fs.ToErrno(err)
	}
	file.unnamed = nil
	return n.Lookup(ctx, name, out)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.disk.change("mkdir"); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if errno := n.disk.change("unlink"); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if errno := n.disk.change("rename"); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rename(ctx, name, parent, newName, flags)
}

type file struct {
	*fs.LoopbackFile
	disk *Disk
}

// PassthroughFd would have the kernel go past us.
func (*file) PassthroughFd() (int, bool) { return 0, false }

func (f *file) Read(ctx context.Context, buf []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.disk.errno(); errno != 0 {
		return nil, errno
	}
	return f.LoopbackFile.Read(ctx, buf, at)
}

func (f *file) Write(ctx context.Context, data []byte, at int64) (uint32, syscall.Errno) {
	if errno := f.disk.change(fmt.Sprintf("write %d %d", at, len(data))); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, at)
}

func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if errno := f.disk.change("fsync"); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}

func (f *file) Allocate(ctx context.Context, at, size uint64, mode uint32) syscall.Errno {
	if errno := f.disk.change("allocate"); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Allocate(ctx, at, size, mode)
}
