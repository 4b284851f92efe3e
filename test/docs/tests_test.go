package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

var (
	// named finds the names of tests in a document.
	named = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`)
	// claim finds rows of tables, and items of lists with the lines that continue them.
	claim = regexp.MustCompile(`(?m)^(?:\| .*|- .*(?:\n  .*)*)$`)
	// heading finds the row above a table's line of dashes.
	heading = regexp.MustCompile(`(?m)^\|.*\|\n\|[-|]+\|$`)
)

// TestPromisesHaveTests finds each test that these documents name, and one at least for each of their claims.
func TestPromisesHaveTests(t *testing.T) {
	declared := declaredTests(t)
	for _, document := range []string{"docs/reliability.md", "docs/security.md"} {
		raw, err := os.ReadFile(filepath.Join(env.Root(), document))
		if err != nil {
			t.Fatal(err)
		}
		text, figures, _ := strings.Cut(string(raw), "\n## Figures\n") // which make bench has
		for _, name := range named.FindAllString(text+figures, -1) {
			if !declared[name] {
				t.Errorf("%s: there is no %s", document, name)
			}
		}
		claims := claim.FindAllString(heading.ReplaceAllString(text, ""), -1)
		if len(claims) < 10 {
			t.Errorf("%s has %d claims: repair this test", document, len(claims))
		}
		for _, c := range claims {
			if !named.MatchString(c) {
				t.Errorf("%s names no test for: %s", document, c)
			}
		}
	}
}

// declaredTests are the tests of this tree.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test\w+|Fuzz\w+)\(`)
	err := filepath.WalkDir(env.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, f := range function.FindAllSubmatch(source, -1) {
			declared[string(f[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return declared
}
