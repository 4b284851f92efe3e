package shim

import (
	"fmt"
	"os"
	"strings"
	"time"
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

// comm is looked at so often while the guest is waited for.
const commLook = 50 * time.Millisecond

// Started returns nil once the guest of this container has started. It waits for that as long as it may, and then
// returns an error that says what there is instead. It runs beside the shim, as the berth's startup probe: one that
// waits sees the start at once, and kubelet raises no Event about a guest that is only on its way.
func Started(patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(commLook) {
		comm, err := os.ReadFile(initComm)
		if err != nil {
			return fmt.Errorf("reading the shim's state: %w", err)
		}
		switch state := strings.TrimSpace(string(comm)); {
		case state == commRunning, state == commPaused:
			return nil
		case state == commEnding, !time.Now().Before(deadline):
			return fmt.Errorf("the guest does not run: %s", state)
		}
	}
}
