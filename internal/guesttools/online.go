package guesttools

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// watch brings processors and memory online, those that are there and those that the kernel tells of, and calls
// portAdded for each new port. It returns only if the kernel cannot be heard.
func watch(portAdded func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listening to kernel events: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("listening to kernel events: %w", err)
	}
	onlineAll("/sys")
	buf := make([]byte, 8<<10) // the kernel's limit is 2 KiB
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // some were lost
			onlineAll("/sys")
			portAdded()
		case err != nil:
			return fmt.Errorf("listening to kernel events: %w", err)
		case ok && sender.Pid == 0: // the kernel's own
			event, _, _ := bytes.Cut(buf[:n], []byte{0})
			heard("/sys", string(event), portAdded)
		}
	}
}

// heard acts on the first line of an event, ACTION@DEVPATH.
func heard(sys, event string, portAdded func()) {
	action, path, _ := strings.Cut(event, "@")
	switch {
	case strings.Contains(path, "/virtio-ports/"): // it has its name with the event "change"
		portAdded()
	case action != "add":
	case strings.HasPrefix(path, "/devices/system/cpu/cpu"), strings.HasPrefix(path, "/devices/system/memory/memory"):
		online(sys + path + "/online")
	}
}

func onlineAll(sys string) {
	for _, devices := range []string{"cpu/cpu", "memory/memory"} {
		paths, _ := filepath.Glob(sys + "/devices/system/" + devices + "*/online") // fails only for a bad pattern
		for _, path := range paths {
			online(path)
		}
	}
}

// online brings a processor or a block of memory online, if it is not. One that is always online has no such file.
func online(path string) {
	if state, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(state)) != "0" {
		return
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		logf("bringing %s online: %v", filepath.Dir(path), err)
	}
}
