package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// TestDemo does what `make demo` does once the lab is up. Each of its steps ends it if it fails.
func TestDemo(t *testing.T) {
	waitForNodes(t)
	dir := env.Need(t, "LAB_DIR", "a lab; make lab-up, then eval \"$(make -s lab-env)\"")
	demo := exec.CommandContext(t.Context(), filepath.Join(env.Root(), "hack", "demo.sh"))
	demo.Env = append(os.Environ(), "BERTH_CACHE="+filepath.Dir(dir))
	out, err := demo.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
