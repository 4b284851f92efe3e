package shim

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// The shim's state is its process name: an exec in the container sees it without a socket or a file that somebody could
// replace. At most 15 bytes, the kernel's limit.
const (
	stateWaiting = "shim:waiting" // no guest yet
	stateRunning = "shim:running"
	statePaused  = "shim:paused"
	stateEnding  = "shim:ending" // asked to end, or its guest has ended
)

// Paths in the container's /proc.
const (
	ownCommPath  = "/proc/self/comm" // of the main thread, whichever writes it
	initCommPath = "/proc/1/comm"
)

// statePollInterval is how often Started reads the state.
const statePollInterval = 50 * time.Millisecond

// Started returns nil once the guest of this container has started. It waits for that until the timeout, and then
// returns an error with the state. It runs beside the shim, as the berth's startup probe: one that
// waits sees the start at once, and kubelet raises no Event about a guest that is only on its way.
func Started(timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(statePollInterval) {
		comm, err := os.ReadFile(initCommPath)
		if err != nil {
			return fmt.Errorf("reading the shim's state: %w", err)
		}
		switch state := strings.TrimSpace(string(comm)); {
		case state == stateRunning, state == statePaused:
			return nil
		case state == stateEnding, !time.Now().Before(deadline):
			return fmt.Errorf("the guest does not run: %s", state)
		}
	}
}
