package docs

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/berth-dev/berth/internal/cli"
	"github.com/berth-dev/berth/test/env"
)

// TestVerbs finds each verb of kubectl vm in the table of docs/kubectl-vm.md, and none that there is not.
func TestVerbs(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(env.Root(), "docs", "kubectl-vm.md"))
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z -]+)[^`]*` \\|").FindAllStringSubmatch(string(raw), -1) {
		written = append(written, regexp.MustCompile(` +$`).ReplaceAllString(row[1], ""))
	}
	var verbs []string
	var walk func(cmd *cobra.Command, prefix string)
	walk = func(cmd *cobra.Command, prefix string) {
		for _, sub := range cmd.Commands() {
			switch {
			case sub.Hidden || sub.Name() == "help" || sub.Name() == "options" || sub.Name() == "completion":
			case sub.HasSubCommands():
				walk(sub, prefix+sub.Name()+" ")
			default:
				verbs = append(verbs, prefix+sub.Name())
			}
		}
	}
	walk(cli.New(genericiooptions.IOStreams{Out: io.Discard, ErrOut: io.Discard}), "")
	slices.Sort(written)
	slices.Sort(verbs)
	if diff := cmp.Diff(verbs, written); diff != "" {
		t.Errorf("docs/kubectl-vm.md: -verbs +written:\n%s", diff)
	}
}
