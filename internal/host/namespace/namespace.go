package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// In does work on a thread in a namespace, an open /proc/PID/ns/… of the kind that a flag of clone(2) names. In a mount
// namespace its root and its working directory are the namespace's. When ctx ends first, work goes on by itself and holds
// its thread: nothing ends what waits for a server of files. What it returns then is closed, if it can be.
func In[T any](ctx context.Context, ns *os.File, kind int, work func() (T, error)) (value T, err error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go onOwnThread(func() {
		var r result
		if r.err = enter(ns, kind); r.err == nil {
			r.value, r.err = work()
		}
		select {
		case done <- r:
		case <-ctx.Done():
			if c, ok := any(r.value).(io.Closer); ok && r.err == nil {
				_ = c.Close()
			}
		}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, fmt.Errorf("working in a namespace: %w", context.Cause(ctx))
	}
}

// Open opens a path below root, the root directory of some process, with further flags of openat2(2). Links lead to below
// root only, and none of /proc's anywhere. It waits for no writer of a FIFO.
func Open(root, path string, flags uint64) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// enter moves this thread into a namespace. The rest of the process stays where it is.
func enter(ns *os.File, kind int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // whoever shares its root with others cannot leave
		return fmt.Errorf("giving a thread its own root: %w", err)
	}
	conn, err := ns.SyscallConn()
	if err == nil {
		var setErr error
		// Control holds the descriptor: its owner may close it before we are here.
		err = conn.Control(func(fd uintptr) { setErr = unix.Setns(int(fd), kind) })
		err = errors.Join(err, setErr)
	}
	if err != nil {
		return fmt.Errorf("entering namespace: %w", err)
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
