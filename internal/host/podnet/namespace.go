package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace does work on a thread in the given network namespace. When ctx ends
// first, work goes on by itself and its result is dropped.
func inNamespace[T any](ctx context.Context, ns *os.File, work func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := refuseHostNamespace(ns); err != nil {
		return none, err
	}
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 3) // the caller may close its own before work ends
	if err != nil {
		return none, fmt.Errorf("duplicating descriptor of network namespace: %w", err)
	}
	done := make(chan result, 1)
	go onOwnThread(func() {
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("entering network namespace: %w", err)}
			return
		}
		value, err := work()
		done <- result{value, err}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("working in network namespace: %w", context.Cause(ctx))
	}
}

// onOwnThread does work on a thread that ends with it, so that no other goroutine
// ever runs in a namespace that work has entered. The main thread cannot end,
// and the whole process's /proc/self/ns would be its own: it stays out.
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

// refuseHostNamespace refuses the namespace that we ourselves are in, the host's: a berth is never there.
func refuseHostNamespace(ns *os.File) error {
	var own, other unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return fmt.Errorf("reading own network namespace: %w", err)
	}
	if err := unix.Fstat(int(ns.Fd()), &other); err != nil {
		return fmt.Errorf("reading network namespace: %w", err)
	}
	if own.Dev == other.Dev && own.Ino == other.Ino {
		return errors.New("the berth is in the host's own network namespace")
	}
	return nil
}
