package kube

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	ctrl "sigs.k8s.io/controller-runtime"
)

// Lean has a process let go, again and again, of the pages of its program. Two thirds of them, half of all its memory,
// only its start needed; those that it still needs come back from the page cache. What its heap has to spare goes, too,
// which takes a look at all of it.
type Lean struct {
	// Each is how often. Its start, then a burst, may have been a moment ago.
	Each time.Duration
}

// NeedLeaderElection is false: who waits to lead is to be small, too.
func (Lean) NeedLeaderElection() bool { return false }

// Start is a manager's to call.
func (l Lean) Start(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(l.Each):
		}
		debug.FreeOSMemory()
		if err := dropProgram(); err != nil {
			ctrl.LoggerFrom(ctx).Info("Keeping all pages of the program", "cause", err.Error())
			return nil
		}
	}
}

// dropProgram has the kernel unmap the pages of the program's file that cannot be written, see madvise(2). They are clean.
func dropProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() { // proc_pid_maps(5): from-to perms offset device inode path
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != program || strings.Contains(fields[1], "w") {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("reading /proc/self/maps: %w", err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return lines.Err()
}
