package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/test/env"
)

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "examples/*.md", "docs/*.md", "docs/adr/*.md", "charts/berth/*.md"} {
		found, err := filepath.Glob(filepath.Join(env.Root(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, file := range documents(t) {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(raw), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s leads to %s, which is not there", filepath.Base(file), m[1])
			}
		}
	}
}

// TestValues finds a line for each of the chart's values.
func TestValues(t *testing.T) {
	chart := filepath.Join(env.Root(), "charts", "berth")
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	tree := map[string]map[string]any{}
	if err := yaml.Unmarshal(values, &tree); err != nil {
		t.Fatal(err)
	}
	for group, of := range tree {
		for name := range of {
			if !strings.Contains(string(readme), "`"+group+"."+name) {
				t.Errorf("charts/berth/README.md says nothing of %s.%s", group, name)
			}
		}
	}
}
