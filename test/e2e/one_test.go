package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// watchOne watches, ten times a second, that each guest has one QEMU at most on all nodes: their processes are this
// machine's too. What it returns ends that, and names those of one guest that were there at once, "" if there never were.
func watchOne(uids ...string) (end func() string) {
	stop, done := make(chan struct{}), make(chan struct{})
	several := ""
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			seen := map[string]string{}
			processes("/usr/bin/qemu-system", func(pid string, line []byte) {
				for _, uid := range uids {
					if !isOf(line, uid) {
						continue
					}
					if seen[uid] != "" && several == "" {
						several = fmt.Sprintf("%s: %s %s", uid, seen[uid], pid)
					}
					seen[uid] = pid
				}
			})
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

// qemus are the processes of a guest's QEMU.
func qemus(uid string) (pids []string) {
	processes("/usr/bin/qemu-system", func(pid string, line []byte) {
		if isOf(line, uid) {
			pids = append(pids, pid)
		}
	})
	return pids
}

func isOf(line []byte, uid string) bool {
	return bytes.Contains(line, []byte("\x00-uuid\x00"+uid+"\x00"))
}

// processes finds those of a program, on all nodes. One that ends, and is only waited for, has no command line any more.
func processes(program string, found func(pid string, line []byte)) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.HasPrefix(line, []byte(program)) {
			found(filepath.Base(filepath.Dir(path)), line)
		}
	}
}
