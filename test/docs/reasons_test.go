package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// TestReasons holds the table of reasons against reasons.go, where each has a
// comment of the form "ReasonX: when. Next: what to do."
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(env.Root(), "api", "v1alpha1", "reasons.go"), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, d := range file.Decls {
		group, ok := d.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		fmt.Fprintf(&table, "\n### %s\n\n| reason | when | next |\n|---|---|---|\n", strings.TrimSuffix(oneLine(group.Doc), "."))
		for _, s := range group.Specs {
			constant := s.(*ast.ValueSpec)
			name, text, ok := strings.Cut(oneLine(constant.Doc), ": ")
			if !ok || name != constant.Names[0].Name {
				t.Errorf("%s has no comment of the form \"%[1]s: when. Next: what to do.\"", constant.Names[0].Name)
			}
			when, next, _ := strings.Cut(text, " Next: ")
			fmt.Fprintf(&table, "| %s | %s | %s |\n", strings.TrimPrefix(name, "Reason"), cell(when), cell(next))
		}
	}
	section(t, "docs/troubleshooting.md", "reasons", table.String())
}

func oneLine(c *ast.CommentGroup) string {
	return strings.Join(strings.Fields(c.Text()), " ")
}

func cell(s string) string { return strings.ReplaceAll(strings.TrimSuffix(s, "."), "|", `\|`) }
