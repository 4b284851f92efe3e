package e2e

import (
	"bytes"
	"os"
	"path/filepath"
)

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
