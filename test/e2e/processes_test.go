package e2e

import (
	"bytes"
	"os"
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
	new(looks).processes(program, found)
}

// looks are many at the processes, for less than each alone takes: one that is none of the program's, look after look,
// will not become one.
type looks struct{ others map[string]int }

// settled is how many looks long a process may yet be one that has begun, and becomes one of the program's.
const settled = 20

func (l *looks) processes(program string, found func(pid string, line []byte)) {
	entries, _ := os.ReadDir("/proc")
	others := make(map[string]int, len(entries))
	for _, e := range entries {
		pid := e.Name()
		if pid[0] < '0' || pid[0] > '9' {
			continue
		}
		others[pid] = l.others[pid] + 1
		if others[pid] > settled {
			continue
		}
		if line, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && bytes.HasPrefix(line, []byte(program)) {
			delete(others, pid)
			found(pid, line)
		}
	}
	l.others = others
}
