package shim

import (
	"fmt"
	"os"
	"strings"
)

// The shim's state is its process name: an exec in the container sees it
// without a socket or a file that somebody could replace. At most 15 bytes, the
// kernel's limit.
const (
	commWaiting = "shim:waiting" // no guest yet
	commRunning = "shim:running"
	commPaused  = "shim:paused"
	commEnding  = "shim:ending" // asked to end, or its guest has ended
)

// Paths in the container's /proc.
const (
	ownComm  = "/proc/self/comm" // of the main thread, whichever writes it
	initComm = "/proc/1/comm"
)

// Started returns nil once the guest of this container has started, and before
// that an error that says what there is instead. It runs beside the shim, as the berth's startup probe.
func Started() error {
	comm, err := os.ReadFile(initComm)
	if err != nil {
		return fmt.Errorf("reading the shim's state: %w", err)
	}
	switch state := strings.TrimSpace(string(comm)); state {
	case commRunning, commPaused:
		return nil
	default:
		return fmt.Errorf("the guest does not run: %s", state)
	}
}
