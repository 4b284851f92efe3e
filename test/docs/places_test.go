package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestPlaces finds each reason that stands in the code beside a condition, or in a failure, at that place in the table of
// reasons, from which users read what a condition can say.
func TestPlaces(t *testing.T) {
	found := 0
	for _, dir := range []string{"controllers", "internal"} {
		err := filepath.WalkDir(filepath.Join(env.Root(), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				places := map[string]string{} // of what is made by a function literal of this name
				ast.Inspect(decl, func(n ast.Node) bool {
					place, reasons := placed(n, places)
					for _, reason := range reasons {
						found++
						if in := reason.In(); len(in) == 0 || place != "" && !slices.Contains(in, place) {
							t.Errorf("%s: the table of reasons has %s in %q, and here it stands in %q", files.Position(n.Pos()), reason, in, place)
						}
					}
					return true
				})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 100 {
		t.Errorf("only %d reasons were found: repair this test", found)
	}
}

// placed is where a call puts reasons, "" for a failure, which is told where its reason says. Such as
//
//	no := func(reason v1alpha1.Reason) metav1.Condition { return condition.New(v1alpha1.ConditionScheduled, false, reason, "") }
//
// it adds to places.
func placed(n ast.Node, places map[string]string) (place string, reasons []v1alpha1.Reason) {
	if assign, ok := n.(*ast.AssignStmt); ok && len(assign.Lhs) == 1 {
		name, named := assign.Lhs[0].(*ast.Ident)
		if literal, ok := assign.Rhs[0].(*ast.FuncLit); ok && named {
			ast.Inspect(literal, func(n ast.Node) bool {
				if at := ofCondition(n); at != "" {
					places[name.Name] = at
				}
				return true
			})
		}
	}
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return "", nil
	}
	place = ofCondition(call)
	if name, ok := call.Fun.(*ast.Ident); ok {
		place = places[name.Name]
	}
	if callee := selected(call.Fun, "fault"); place == "" && !strings.HasPrefix(callee, "New") || place == v1alpha1.ConditionStalled {
		return "", nil
	}
	for _, arg := range call.Args {
		if word, ok := strings.CutPrefix(selected(arg, "v1alpha1"), "Reason"); ok && word != "" {
			reasons = append(reasons, v1alpha1.Reason(word))
		}
	}
	if place == v1alpha1.ConditionReady { // it repeats the reasons of others
		place = ""
	}
	return place, reasons
}

// ofCondition is the place of the condition that a call makes, "" for other calls.
func ofCondition(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 || !slices.Contains([]string{"New", "Unknown"}, selected(call.Fun, "condition")) {
		return ""
	}
	switch kind, _ := strings.CutPrefix(selected(call.Args[0], "v1alpha1"), "Condition"); kind {
	case "HostReady", "WellConfigured":
		return v1alpha1.InHost
	case v1alpha1.ConditionResolved:
		return v1alpha1.InImage
	case v1alpha1.ConditionComplete, v1alpha1.ConditionFailed:
		return v1alpha1.InCommit
	default:
		return kind
	}
}

// selected is NAME of an expression pkg.NAME, "" for others.
func selected(e ast.Expr, pkg string) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := s.X.(*ast.Ident); !ok || x.Name != pkg {
		return ""
	}
	return s.Sel.Name
}
