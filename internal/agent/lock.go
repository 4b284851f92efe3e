package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// lockNode makes this the only agent of its node, for as long as the process lives: two would end each other's guests. The
// kernel lets go of the lock with the process, however that ends.
func lockNode(runDir string) error {
	path := filepath.Join(runDir, "agent.lock")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another berth-agent runs on this node and has locked %s: end it, or uninstall the second Berth of this cluster", path)
	}
	return fault.Doing(err, "locking %s", path) // the descriptor stays open
}
