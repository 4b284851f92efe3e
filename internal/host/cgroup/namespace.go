package cgroup

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// entered marks, in the environment, a process that has been through EnterHostNamespace.
const entered = "BERTH_CGROUP_NAMESPACE"

// EnterHostNamespace puts the whole process into the cgroup namespace of PID 1. Threads have that namespace each for
// themselves, and the Go runtime has made some before main, so one thread enters it and the program executes itself
// again from there: call it first thing in main. It returns when there is nothing to do, or on failure.
//
// It needs the host's PID namespace, CAP_SYS_PTRACE and CAP_SYS_ADMIN.
func EnterHostNamespace() error { return enterNamespaceOf(1) }

func enterNamespaceOf(pid int) error {
	host := fmt.Sprintf("/proc/%d/ns/cgroup", pid)
	theirs, err := os.Readlink(host)
	ours, ownErr := os.Readlink("/proc/self/ns/cgroup")
	if err := errors.Join(err, ownErr); err != nil {
		return fmt.Errorf("reading cgroup namespaces: %w", err)
	}
	if theirs == ours {
		return nil
	}
	if os.Getenv(entered) != "" {
		return errors.New("still outside of the host's cgroup namespace after entering it")
	}
	f, err := os.Open(host)
	if err != nil {
		return fmt.Errorf("opening cgroup namespace of process %d: %w", pid, err)
	}
	defer f.Close()
	runtime.LockOSThread() // and never unlocked: this thread differs from the others
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("entering the host's cgroup namespace: %w", err)
	}
	err = unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), entered+"=host"))
	return fmt.Errorf("executing /proc/self/exe in the host's cgroup namespace: %w", err)
}
