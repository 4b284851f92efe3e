package seed

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

func TestTools(t *testing.T) {
	for _, size := range []int{0, 1, sector, 3<<20 + 1} {
		program := bytes.Repeat([]byte{'x'}, size)
		b := Tools(program)
		if len(b)%sector != 0 || len(b) < size || len(b) > size+32*sector {
			t.Errorf("a program of %d bytes gives a disk of %d", size, len(b))
		}
		if label := strings.TrimSpace(string(b[primarySector*sector+40:][:32])); label != "BERTH" {
			t.Errorf("its label is %q", label)
		}
		files := read(t, b, jolietSector, wide)
		if len(files) != 2 || files["berth-guest"] != string(program) || files["start"] != start {
			t.Errorf("a program of %d bytes: %d files", size, len(files))
		}
		if !bytes.Equal(b, Tools(program)) {
			t.Error("the same program gave other bytes")
		}
	}
}

// TestStart runs the script where there is no systemd, in a root of its own: the program runs, is begun anew when it has
// ended, and a second start leaves it alone.
func TestStart(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		env.Missing(t, "needs root and busybox")
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "run/berth", "var/lib", "dev", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"bin/busybox": string(raw), "dev/null": "", "run/berth/start": start,
		"run/berth/berth-guest": "#!/bin/sh\necho $$ >>/run/begun\nexec sleep 1000\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(command string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "chroot", root, "/bin/busybox", "sh", "-c", command)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", command, err, out)
		}
	}
	pids := func(file string) []int {
		raw, _ := os.ReadFile(filepath.Join(root, "run", file))
		var all []int
		for word := range strings.FieldsSeq(string(raw)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
		}
		return all
	}
	t.Cleanup(func() {
		for _, pid := range append(pids("berth-guest.pid"), pids("begun")...) { // first what begins it anew
			if link, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/root"); err == nil && link == root {
				_ = exec.CommandContext(context.Background(), "kill", "-9", strconv.Itoa(pid)).Run()
			}
		}
	})
	run("/bin/busybox --install -s /bin")
	run("sh /run/berth/start")
	env.Eventually(t, "the program to run", func() bool { return len(pids("begun")) == 1 })
	loop := pids("berth-guest.pid")
	run("sh /run/berth/start")
	if again := pids("berth-guest.pid"); len(loop) != 1 || len(again) != 1 || again[0] != loop[0] {
		t.Errorf("a second start has process %v, the first had %v", again, loop)
	}
	run("kill -9 " + strconv.Itoa(pids("begun")[0]))
	env.Eventually(t, "the program to run anew", func() bool { return len(pids("begun")) == 2 })
	if info, err := os.Stat(filepath.Join(root, "var/lib/berth/berth-guest")); err != nil || info.Mode().Perm() != 0o755 || time.Since(info.ModTime()).Abs() > time.Hour {
		t.Errorf("the copy is %v, %v", info, err)
	}
}
