// Package loop gives files a loop device each, one in the whole machine below, which nodes share. It never mounts one.
package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Open returns the loop device of a file, open: the one that it has, or a new one. The kernel takes it away from the file
// when nobody has it open or mounted any more.
func Open(path string) (*os.File, error) {
	// Another node may be about to do the same. The lock is not file's, which the device keeps, and with it its locks.
	lock, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	device, err := Find(path)
	if device != nil || err != nil {
		return device, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &unix.LoopConfig{
			Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("giving %s to %s: %w", device.Name(), path, err)
		}
	}
}

// Find returns the loop device of a file, open, or nil if it has none.
func Find(path string) (*os.File, error) {
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return nil, fmt.Errorf("looking at %s: %w", path, err)
	}
	var found *os.File
	err := each(func(device *os.File, of *unix.LoopInfo64) error {
		if found == nil && of.Device == file.Dev && of.Inode == file.Ino {
			again, err := os.OpenFile(device.Name(), os.O_RDWR, 0)
			found = again
			return err
		}
		return nil
	})
	return found, err
}

// Grow tells a device that its file has grown.
func Grow(device *os.File) error {
	return unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0)
}

// freeTimeout is ample for the kernel to let go of what had a device open.
const freeTimeout = 10 * time.Second

// Free takes devices away from all files and device nodes below a directory, whoever gave them, and waits until they have
// gone. Their users are to be gone before.
func Free(dir string) error {
	type inode struct{ device, number uint64 }
	below := map[inode]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err != nil {
			return err
		}
		below[inode{s.Dev, s.Ino}] = path
		return nil
	})
	if err != nil || len(below) == 0 {
		return err
	}
	for deadline := time.Now().Add(freeTimeout); ; time.Sleep(10 * time.Millisecond) {
		var left error
		err := each(func(device *os.File, of *unix.LoopInfo64) error {
			path, is := below[inode{of.Device, of.Inode}]
			if !is {
				return nil
			}
			left = fmt.Errorf("%s, of %s, is still in use: a process or a mount outside of the lab has it", device.Name(), path)
			return ignore(unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0), unix.ENXIO)
		})
		if err != nil || left == nil {
			return err
		}
		if time.Now().After(deadline) {
			return left
		}
	}
}

// each shows all loop devices that have a file, read-only.
func each(show func(*os.File, *unix.LoopInfo64) error) error {
	names, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return err
	}
	for _, name := range names {
		device, err := os.Open(filepath.Join("/dev", filepath.Base(filepath.Dir(name))))
		if errors.Is(err, fs.ErrNotExist) { // of another machine, not of a node
			continue
		}
		if err != nil {
			return err
		}
		of, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		if err == nil {
			err = show(device, of)
		}
		device.Close()
		if ignore(err, unix.ENXIO) != nil { // it has lost its file meanwhile
			return fmt.Errorf("looking at %s: %w", device.Name(), err)
		}
	}
	return nil
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
