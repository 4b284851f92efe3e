package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// TestNames finds each metric and each problem of a host in the document for it.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		source, document, prefix string
		name                     *regexp.Regexp
	}{
		{"internal/agent/metrics.go", "docs/metrics.md", "berth_", regexp.MustCompile(`(?:(?:counters?|gauge)\(|Name: )"([a-z_]+)"`)},
		{"internal/agent/host/checks.go", "docs/hosts.md", "", regexp.MustCompile(`name: "([A-Za-z0-9]+)"`)},
	} {
		source, err := os.ReadFile(filepath.Join(env.Root(), c.source))
		if err != nil {
			t.Fatal(err)
		}
		document, err := os.ReadFile(filepath.Join(env.Root(), c.document))
		if err != nil {
			t.Fatal(err)
		}
		names := c.name.FindAllStringSubmatch(string(source), -1)
		if len(names) == 0 {
			t.Errorf("%s has no names: repair this test", c.source)
		}
		for _, name := range names {
			if !strings.Contains(string(document), c.prefix+name[1]) {
				t.Errorf("%s says nothing of %s%s", c.document, c.prefix, name[1])
			}
		}
	}
}
