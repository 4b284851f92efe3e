package agent

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestOneAgentForANode runs itself as the other agent.
func TestOneAgentForANode(t *testing.T) {
	const variable = "BERTH_TEST_LOCK"
	if dir := os.Getenv(variable); dir != "" {
		if err := lockNode(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	other := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestOneAgentForANode$")
		cmd.Env = append(os.Environ(), variable+"="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := other(); err != nil {
		t.Fatalf("alone: %v\n%s", err, out)
	}
	if err := lockNode(dir); err != nil {
		t.Fatalf("after the other has ended: %v", err)
	}
	if out, err := other(); err == nil || !strings.Contains(out, "another berth-agent runs on this node") {
		t.Errorf("beside this one: %v\n%s", err, out)
	}
}
