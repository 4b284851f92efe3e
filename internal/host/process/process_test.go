package process

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

const uuid = "5d0c3c5e-0000-4000-8000-00000000a001"

func TestFindTakesOnlyQEMU(t *testing.T) {
	if found, err := Find(uuid); err != nil || len(found) != 0 {
		t.Fatalf("without one: %v, %v", found, err)
	}
	// tail does not mind our arguments as names of files that do not exist.
	cmd := exec.Command("/usr/bin/tail", "-F", "-q", "--pid", fmt.Sprint(os.Getpid()), "/dev/null", "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if found, err := Find(uuid); err != nil || len(found) != 0 {
		t.Errorf("another program with QEMU's argument counts: %v, %v", found, err)
	}
}

func TestFind(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		env.Missing(t, "needs qemu-system-x86_64")
	}
	cmd := exec.Command(qemu, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	found, err := Find(uuid)
	if err != nil || len(found) != 1 || found[0] != (Process{PID: cmd.Process.Pid, UID: uint32(os.Getuid())}) {
		t.Fatalf("found %v, %v", found, err)
	}
	if helpers, err := Helpers(found[0].PID); err != nil || len(helpers) != 0 {
		t.Errorf("helpers of a QEMU without vhost: %v, %v", helpers, err)
	}
	if err := found[0].Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if found, err := Find(uuid); err != nil || len(found) != 0 {
		t.Errorf("after its end: %v, %v", found, err)
	}
}

func BenchmarkFind(b *testing.B) {
	for b.Loop() {
		if _, err := Find(uuid); err != nil {
			b.Fatal(err)
		}
	}
}

func TestHandle(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Alive() {
		t.Error("a process that runs is not alive")
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	if err := (Process{PID: cmd.Process.Pid, UID: uint32(os.Getuid())}).Kill(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if h.Alive() {
		t.Error("a killed process is alive")
	}
	_ = cmd.Wait()
	if err := (Process{PID: cmd.Process.Pid}).Kill(); err != nil {
		t.Errorf("killing one that is gone: %v", err)
	}
}

func TestParseStatus(t *testing.T) {
	tests := []struct {
		name, status  string
		ended, nested bool
	}{
		{"a process of the host", "Name:\tqemu\nState:\tS (sleeping)\nNSpid:\t42\n", false, false},
		{"a zombie", "State:\tZ (zombie)\nNSpid:\t42\n", true, false},
		{"a process of a container", "State:\tR (running)\nNSpid:\t42\t7\n", false, true},
		{"nothing", "", false, false},
	}
	for _, tt := range tests {
		if ended, nested := parseStatus(tt.status); ended != tt.ended || nested != tt.nested {
			t.Errorf("%s: ended %t, nested %t", tt.name, ended, nested)
		}
	}
}
