package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// watchOne watches, many times a second, that a guest has one QEMU at most on all nodes: their processes are this
// machine's too. What it returns ends that, and names those that were there at once, "" if there never were.
func watchOne(uid string) (end func() string) {
	stop, done := make(chan struct{}), make(chan struct{})
	several := ""
	go func() {
		defer close(done)
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for {
			if pids := qemus(uid); len(pids) > 1 && several == "" {
				several = fmt.Sprint(pids)
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return sync.OnceValue(func() string {
		close(stop)
		<-done
		return several
	})
}

// qemus are the processes of a guest's QEMU. One that ends, and is only waited for, has no command line any more.
func qemus(uid string) (pids []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		raw, err := os.ReadFile(line)
		if err == nil && bytes.HasPrefix(raw, []byte("/usr/bin/qemu-system")) && bytes.Contains(raw, []byte("\x00-uuid\x00"+uid+"\x00")) {
			pids = append(pids, filepath.Base(filepath.Dir(line)))
		}
	}
	return pids
}
