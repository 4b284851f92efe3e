package docs

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/test/env"
)

var update = flag.Bool("update", false, "write the generated sections")

// section compares what stands in a document between <!-- name --> and
// <!-- /name --> with what should, or writes it.
func section(t *testing.T, file, name, want string) {
	t.Helper()
	path := filepath.Join(env.Root(), file)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(raw), "<!-- "+name+" -->\n")
	have, after, ok := strings.Cut(rest, "\n<!-- /"+name+" -->")
	if !ok {
		t.Fatalf("%s has no section %s", file, name)
	}
	if *update {
		text := before + "<!-- " + name + " -->\n" + want + "\n<!-- /" + name + " -->" + after
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(have, "\n"), strings.Split(want, "\n")); diff != "" {
		t.Errorf("%s is not up to date: run go test ./test/docs -update\n%s", file, diff)
	}
}
