package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// users are the processes of this node that have a device open, or a file on it, or a mount of it in their view but the
// staged one. A kernel names none of them, and a file system that somebody else still has mounted is none the less unmounted
// from where it was staged.
func users(device *os.File, staged string) (found []string, err error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(device.Fd()), &s); err != nil {
		return nil, explain("looking at "+device.Name(), err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	looked := map[string]bool{} // by mount namespace
	for _, process := range processes {
		pid := filepath.Base(process)
		// Whoever ends meanwhile uses nothing.
		name, _ := os.ReadFile(process + "/comm")
		uses := func(what string) {
			found = append(found, fmt.Sprintf("process %s (%s) has %s", pid, strings.TrimSpace(string(name)), what))
		}
		if view, err := os.Readlink(process + "/ns/mnt"); err == nil && !looked[view] {
			looked[view] = true
			mounts, _ := os.ReadFile(process + "/mountinfo")
			for _, point := range mountPoints(string(mounts), number) {
				if !strings.HasSuffix(point, staged) {
					uses("a mount at " + point)
				}
			}
		}
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		files, _ := filepath.Glob(process + "/fd/*")
		for _, file := range files {
			var of unix.Stat_t
			if unix.Stat(file, &of) != nil {
				continue
			}
			if of.Dev == s.Rdev || of.Mode&unix.S_IFMT == unix.S_IFBLK && of.Rdev == s.Rdev {
				path, _ := os.Readlink(file)
				uses(path + " open")
			}
		}
	}
	return found, nil
}

// mountPoints are the places in a /proc/PID/mountinfo, proc_pid_mountinfo(5), where a device is mounted.
func mountPoints(mounts, number string) (points []string) {
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[2] == number {
			points = append(points, fields[4])
		}
	}
	return points
}
