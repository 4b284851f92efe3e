package e2e

import (
	"fmt"
	"sync"
	"time"
)

// watchOne watches, ten times a second, that each guest has one QEMU at most on all nodes: their processes are this
// machine's too. What it returns ends that, and names those of one guest that were there at once, "" if there never were.
func watchOne(uids ...string) (end func() string) {
	return watchQEMUs(uids, func(uid string) string { return uid })
}

// watchOneOf watches that some guests, which cannot run at once, have one QEMU at most.
func watchOneOf(uids ...string) (end func() string) {
	return watchQEMUs(uids, func(string) string { return "any of them" })
}

// watchQEMUs watches that there is one QEMU at most of what guests stand for.
func watchQEMUs(uids []string, of func(uid string) string) (end func() string) {
	stop, done := make(chan struct{}), make(chan struct{})
	several := ""
	go func() {
		defer close(done)
		var all looks
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			seen := map[string]string{}
			all.processes("/usr/bin/qemu-system", func(pid string, line []byte) {
				for _, uid := range uids {
					if !isOf(line, uid) {
						continue
					}
					one := of(uid)
					if seen[one] != "" && several == "" {
						several = fmt.Sprintf("%s: %s %s", one, seen[one], pid)
					}
					seen[one] = pid
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
