package build

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// tailLines of a failed command's output are shown.
const tailLines = 25

// run a command in dir with additions to the environment.
func run(dir string, env []string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, Tail(out.String(), tailLines))
	}
	return nil
}

// Tail returns the last n lines of text.
func Tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
