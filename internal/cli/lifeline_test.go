package cli

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestTheLifelineEndsTheGuest runs what is run in the guest, with another end.
func TestTheLifelineEndsTheGuest(t *testing.T) {
	held := filepath.Join(t.TempDir(), "held")
	script := strings.NewReplacer(guestsEnd, "exit 9", lifelineHeld, held).Replace(lifeline)
	if strings.Contains(script, "poweroff") {
		t.Fatal("this would end the machine that the test runs on")
	}
	cmd := exec.Command("sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("it does not tell that it is held: %v", err)
	}
	if _, err := os.Stat(held); err != nil {
		t.Errorf("the startupProbe does not see that it is held: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Errorf("it ends before it is let go: %v", err)
	}
	_ = in.Close()
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("let go, it ends with %v", cmd.ProcessState)
	}
}

// TestALifelineThatCannotBeHeld is told at once.
func TestALifelineThatCannotBeHeld(t *testing.T) {
	script := strings.NewReplacer(guestsEnd, "exit 9", lifelineHeld, "/nowhere/held").Replace(lifeline)
	if out, err := exec.Command("sh", "-c", script).Output(); err == nil || len(out) > 0 {
		t.Errorf("it ends with %v, and tells %q", err, out)
	}
}
