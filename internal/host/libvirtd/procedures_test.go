package libvirtd

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// qemuProgram is that of the calls of QEMU's driver (qemu_protocol.x), of which none is made.
const qemuProgram = 0x20008087

// method is what one of go-libvirt's sends and calls.
type method struct {
	sends procedure // zero: nothing
	calls []string  // by name
}

// TestRepliesAreThoseOfTheCallsThatAreMade holds the table of replies against the sources: each call of go-libvirt that
// this package makes has its reply in it, of the type that go-libvirt reads, and no other has.
func TestRepliesAreThoseOfTheCallsThatAreMade(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/digitalocean/go-libvirt").Output()
	if err != nil {
		t.Fatal(err)
	}
	library := parseFiles(t, filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	methods, types := map[string]method{}, map[string]bool{}
	for _, file := range library {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil {
					methods[d.Name.Name] = read(d)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok {
						types[s.Name.Name] = true
					}
				}
			}
		}
	}
	want := map[procedure]string{}
	var follow func(name string) // the library's calls have no circle
	follow = func(name string) {
		m := methods[name]
		if m.sends != (procedure{}) {
			want[m.sends] = "" // an empty reply
			if types[name+"Ret"] {
				want[m.sends] = name + "Ret"
			}
		}
		for _, called := range m.calls {
			follow(called)
		}
	}
	for _, file := range parseFiles(t, "*.go") {
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "golibvirt" {
				return true // a constant, such as DomainShutdown
			}
			// Of what libvirt.go of the library adds to the protocol's own calls, the rest has names that this package has for its own.
			if methods[s.Sel.Name].sends != (procedure{}) || s.Sel.Name == "ConnectToURI" || s.Sel.Name == "SubscribeEvents" {
				follow(s.Sel.Name)
			}
			return true
		})
	}
	if len(want) < 10 {
		t.Fatalf("found %d calls: the sources have another form", len(want))
	}
	for p, name := range want {
		if got, ok := replies[p]; !ok || got.Name() != name {
			t.Errorf("the reply to procedure %d of program %#x is a %v, want %q", p.number, p.program, got, name)
		}
	}
	for p := range maps.Keys(replies) {
		if _, ok := want[p]; !ok {
			t.Errorf("nothing calls procedure %d of program %#x", p.number, p.program)
		}
	}
}

func parseFiles(t *testing.T, pattern string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// read finds the calls of its receiver l in a method, and what it sends by l.request or l.requestStream.
func read(d *ast.FuncDecl) (m method) {
	ast.Inspect(d, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		s, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if receiver, ok := s.X.(*ast.Ident); !ok || receiver.Name != "l" {
			return true
		}
		if !slices.Contains([]string{"request", "requestStream"}, s.Sel.Name) {
			m.calls = append(m.calls, s.Sel.Name)
			return true
		}
		switch number := call.Args[0].(type) {
		case *ast.BasicLit:
			n, _ := strconv.ParseUint(number.Value, 10, 32)
			m.sends.number = uint32(n)
		case *ast.SelectorExpr: // constants.ProcConnectOpen, the only one by name
			m.sends.number = 1
		}
		m.sends.program = remoteProgram
		if program, ok := call.Args[1].(*ast.SelectorExpr); ok && program.Sel.Name == "QEMUProgram" {
			m.sends.program = qemuProgram
		}
		return true
	})
	return m
}
