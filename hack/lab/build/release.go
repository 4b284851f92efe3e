package build

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Release builds Berth's programs as they were at a commit of the clone in root. The directory that it returns holds
// that commit's tree, and its programs in bin.
func (c *Cache) Release(root, commit string) (string, error) {
	git := exec.Command("git", "-C", root, "rev-parse", "--verify", "--quiet", commit+"^{commit}")
	hash, err := git.Output()
	if err != nil {
		return "", fmt.Errorf("commit %s is not in %s: fetch it, in a shallow clone by git fetch --unshallow: %w", commit, root, err)
	}
	commit = strings.TrimSpace(string(hash))
	return c.part("release", commit+"\n"+runtime.Version(), func(dir string) error {
		tree := filepath.Join(dir, "tree.tar")
		for _, command := range [][]string{
			{"git", "archive", "--format=tar", "--output=" + tree, commit},
			{"tar", "-C", dir, "-xf", tree},
			{"rm", tree},
		} {
			if err := run(root, nil, command...); err != nil {
				return err
			}
		}
		// Built as Program does, but for the version that the agent tells.
		return run(dir, []string{"CGO_ENABLED=0", "GOFLAGS="},
			"go", "build", "-buildvcs=false", "-tags=grpcnotrace", "-ldflags=-s -w -X main.version="+commit, "-o", "bin/", "./cmd/...")
	})
}
