package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// publicKey is a user's, of no use to anybody.
const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2ipRNpSNrtS/6ZIJKEV/Ej6/xFCpgB6xuhwt+lpOfI you@example.org\n"

// FirstVM returns what the README has its reader do with a first VM: the manifest that it has kubectl apply, as a shell
// makes it, and the commands that follow, one a line.
func FirstVM(t testing.TB) (manifest []byte, commands []string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(env.Root(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(raw), "\n## First VM\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var blocks []string
	for _, rest := range strings.Split(section, "\n```sh\n")[1:] {
		block, _, _ := strings.Cut(rest, "\n```\n")
		blocks = append(blocks, block)
	}
	if len(blocks) != 2 || !strings.HasPrefix(blocks[0], "kubectl apply -f - <<") {
		t.Fatalf("the README's section First VM has %d blocks of sh, want one that applies a manifest and one of commands", len(blocks))
	}
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".ssh", "id_ed25519.pub"), []byte(publicKey), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := exec.CommandContext(t.Context(), "bash", "-euc", "kubectl() { cat; }\n"+blocks[0])
	shell.Env = append(os.Environ(), "HOME="+home)
	shell.Stderr = os.Stderr
	if manifest, err = shell.Output(); err != nil {
		t.Fatalf("making the README's manifest: %v", err)
	}
	return manifest, strings.Split(blocks[1], "\n")
}
