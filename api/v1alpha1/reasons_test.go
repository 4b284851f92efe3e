package v1alpha1

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// allIsWell are the reasons after which nothing is to be done.
var allIsWell = map[Reason]bool{
	ReasonScheduled: true, ReasonDisksReady: true, ReasonStarted: true, ReasonGuestAgentConnected: true, ReasonReady: true, ReasonUpToDate: true,
	ReasonHostReady: true, ReasonWellConfigured: true, ReasonTTLExpired: true, ReasonPulled: true, ReasonImageReady: true, ReasonImageResolved: true, ReasonCommitted: true,
}

// TestReasons holds the table of reasons against the constants, in whatever file they stand.
func TestReasons(t *testing.T) {
	declared := map[Reason]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Reason" {
					value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
					if err != nil || declared[Reason(value)] || spec.Names[0].Name != "Reason"+value {
						t.Errorf("%s is %q: each reason has a value of its own, and is named like it", spec.Names[0].Name, value)
					}
					declared[Reason(value)] = true
				}
			}
			return true
		})
	}
	for reason := range declared {
		if _, ok := reasons[reason]; !ok {
			t.Errorf("%s has no entry in the table of reasons", reason)
		}
	}
	for reason := range reasons {
		if !declared[reason] {
			t.Errorf("the table of reasons has %s, which is no constant", reason)
		}
		when, next := reason.When(), reason.Next()
		if !strings.HasSuffix(when, ".") || next != "" && !strings.HasSuffix(next, ".") && !strings.HasSuffix(next, "?") {
			t.Errorf("%s: %q %q: write sentences", reason, when, next)
		}
		if next == "" && !allIsWell[reason] {
			t.Errorf("%s tells that something is not as it should be, or not yet, and nobody learns what to do", reason)
		}
	}
}
