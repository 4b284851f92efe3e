package build

import (
	"os"
	"path/filepath"
)

// failpointPackages have failpoints.
var failpointPackages = []string{"internal/agent/virtualmachine", "controllers/virtualmachine"}

// FailpointsTag is the build tag of what failpoints need.
const FailpointsTag = "failpoints"

// Failpoints copies the product's tree and turns the failpoints in the copy on, as code. It returns the copy's path.
func (c *Cache) Failpoints(root string) (string, error) {
	tree := filepath.Join(c.Dir, "failpoints")
	return tree, c.Step("turn failpoints on", func() error {
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		for _, dir := range []string{"api", "cmd", "controllers", "internal"} {
			if err := os.CopyFS(filepath.Join(tree, dir), os.DirFS(filepath.Join(root, dir))); err != nil {
				return err
			}
		}
		for _, file := range []string{"go.mod", "go.sum"} {
			raw, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(tree, file), raw, 0o644); err != nil {
				return err
			}
		}
		args := []string{"go", "tool", "gofail", "enable"}
		for _, p := range failpointPackages {
			args = append(args, filepath.Join(tree, p))
		}
		return run(filepath.Join(root, "hack"), []string{"GOFLAGS="}, args...)
	})
}
