package shim

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

// TestConfinedReadsItsOwnFilesAlone: a process that is confined can read what it was left and nothing else, on no thread.
func TestConfinedReadsItsOwnFilesAlone(t *testing.T) {
	const role = "BERTH_TEST_CONFINED"
	if dir := os.Getenv(role); dir != "" { // the process that is confined, for good
		confined(t, dir)
		return
	}
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1) // asks for its version
	if errno != 0 {
		env.Missing(t, "the kernel has no Landlock: "+errno.Error())
	}
	dir := t.TempDir()
	for _, name := range []string{"own", "secret", "log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), role+"="+dir)
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func confined(t *testing.T, dir string) {
	path := func(name string) string { return filepath.Join(dir, name) }
	err := confine(map[string]uint64{
		path("own"): unix.LANDLOCK_ACCESS_FS_READ_FILE, path("log"): unix.LANDLOCK_ACCESS_FS_WRITE_FILE, path("missing"): unix.LANDLOCK_ACCESS_FS_READ_FILE,
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	look := func() {
		if own, err := os.ReadFile(path("own")); string(own) != "own" {
			t.Errorf("its own file: %q, %v", own, err)
		}
		if err := os.WriteFile(path("log"), []byte("said"), 0); err != nil {
			t.Errorf("the log: %v", err)
		}
		_, secretErr := os.ReadFile(path("secret"))
		_, logErr := os.ReadFile(path("log"))
		_, listErr := os.ReadDir(dir)
		for what, err := range map[string]error{
			"a secret": secretErr, "what it may only write": logErr, "a directory": listErr, "a new file": os.WriteFile(path("new"), nil, 0o600),
		} {
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: %v, want EACCES", what, err)
			}
		}
	}
	look()
	go func() {
		defer close(ended)
		runtime.LockOSThread() // another one
		look()
	}()
	<-ended
}
