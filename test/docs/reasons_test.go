package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestReasons writes the table of reasons for those who look one up.
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(env.Root(), "api", "v1alpha1", "reasons.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	ast.Inspect(file, func(n ast.Node) bool {
		if constant, ok := n.(*ast.ValueSpec); ok {
			word, err := strconv.Unquote(constant.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reason := v1alpha1.Reason(word)
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s | %s |\n",
				word, strings.Join(reason.In(), ", "), reason.Event(), cell(reason.When()), cell(reason.Next())))
		}
		return true
	})
	slices.Sort(rows)
	section(t, "docs/troubleshooting.md", "reasons", "\n| reason | in | Event | when | next |\n|---|---|---|---|---|\n"+strings.Join(rows, ""))
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
