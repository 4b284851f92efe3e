package cli

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entry of a hostile tar.
func entry(kind byte, name, link string) tar.Header {
	h := tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o6777}
	if kind == tar.TypeReg {
		h.Size = 3
	}
	return h
}

func TestAGuestWritesNothingOutside(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []tar.Header
		fails   string
		skips   string
		want    []string
	}{
		{"a name above", []tar.Header{entry(tar.TypeReg, "etc/../../x", "")}, "not below etc", "", nil},
		{"an absolute name", []tar.Header{entry(tar.TypeReg, "/etc/x", "")}, "not below etc", "", nil},
		{"a name beside", []tar.Header{entry(tar.TypeReg, "etcetera", "")}, "not below etc", "", nil},
		{"a link out", []tar.Header{entry(tar.TypeSymlink, "etc/x", "../../secret"), entry(tar.TypeReg, "etc/y", "")}, "", "leads out of what is copied", []string{"y"}},
		{"an absolute link", []tar.Header{entry(tar.TypeSymlink, "etc/x", "/secret"), entry(tar.TypeReg, "etc/y", "")}, "", "leads out of what is copied", []string{"y"}},
		{"a link within", []tar.Header{entry(tar.TypeDir, "etc/d", ""), entry(tar.TypeSymlink, "etc/d/x", "../y"), entry(tar.TypeReg, "etc/y", "")}, "", "", []string{"d", "d/x", "y"}},
		{"a file through a link that a link moved up", []tar.Header{entry(tar.TypeSymlink, "etc/p", "."), entry(tar.TypeSymlink, "etc/p/up", ".."), entry(tar.TypeReg, "etc/up/evil", "")}, "is a link", "", nil},
		{"a file through the destination", []tar.Header{entry(tar.TypeSymlink, "etc", "."), entry(tar.TypeReg, "etc/evil", "")}, "is a link", "", nil},
		{"a directory in place of a link", []tar.Header{entry(tar.TypeSymlink, "etc/d", "y"), entry(tar.TypeDir, "etc/d", ""), entry(tar.TypeReg, "etc/d/f", "")}, "", "", []string{"d", "d/f"}},
		{"the mode of a directory that became a link", []tar.Header{entry(tar.TypeDir, "etc/d", ""), entry(tar.TypeSymlink, "etc/d", ".")}, "", "", []string{"d"}},
		{"a hard link out", []tar.Header{entry(tar.TypeLink, "etc/x", "secret")}, "not below", "", nil},
		{"a hard link above", []tar.Header{entry(tar.TypeLink, "etc/x", "etc/../../secret")}, "not below", "", nil},
		{"a device", []tar.Header{entry(tar.TypeBlock, "etc/x", ""), entry(tar.TypeChar, "etc/y", ""), entry(tar.TypeFifo, "etc/z", ""), entry(tar.TypeReg, "etc/f", "")}, "", "is no file, directory or link", []string{"f"}},
		{"a file in place of a directory that is full", []tar.Header{entry(tar.TypeReg, "etc/d/x", ""), entry(tar.TypeReg, "etc/d", "")}, "writing", "", nil},
		{"a file below a file", []tar.Header{entry(tar.TypeReg, "etc/d", ""), entry(tar.TypeReg, "etc/d/x", "")}, "writing", "", nil},
		{"escapes in a name", []tar.Header{entry(tar.TypeFifo, "etc/\x1b[2J", ""), entry(tar.TypeReg, "etc/f", "")}, "", "[2J: it is no file", []string{"f"}},
		{"the mode of a directory that became a hard link", []tar.Header{entry(tar.TypeReg, "etc/f", ""), entry(tar.TypeDir, "etc/d", ""), entry(tar.TypeLink, "etc/d", "etc/f")}, "", "", []string{"d", "f"}},
		{"nothing", nil, "the guest sends nothing", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "secret"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			var stream bytes.Buffer
			w := tar.NewWriter(&stream)
			for _, h := range c.entries {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte("abc")[:h.Size]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			destination := filepath.Join(root, "in", "here")
			if err := os.MkdirAll(filepath.Dir(destination), 0o755); err != nil {
				t.Fatal(err)
			}
			errOut := &bytes.Buffer{}
			err := writeTree(&stream, "etc", destination, func(what string) { errOut.WriteString(what) })
			if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("it fails with %v, not %q", err, c.fails)
			}
			if !strings.Contains(errOut.String(), c.skips) || (c.skips == "") != (errOut.Len() == 0) {
				t.Errorf("it says %q, not %q", errOut, c.skips)
			}
			outside := tree(t, root)
			var got []string
			for name, what := range outside {
				below, isBelow := strings.CutPrefix(name, filepath.Join("in", "here")+"/")
				switch {
				case isBelow:
					got = append(got, below)
					if strings.ContainsAny(strings.Fields(what)[0], "st") || strings.HasPrefix(what, "u") {
						t.Errorf("%s has the mode %s", name, what)
					}
				case name != "." && name != "in" && name != "in/here" && name != "secret":
					t.Errorf("%s was written outside", name)
				}
			}
			if c.fails == "" && !cmp.Equal(c.want, slices.Sorted(slices.Values(got))) {
				t.Errorf("there is %q, not %q", got, c.want)
			}
			if kept, err := os.ReadFile(filepath.Join(root, "secret")); err != nil || string(kept) != "kept" {
				t.Errorf("the file outside has %q, %v", kept, err)
			}
		})
	}
}

func TestAStreamThatIsCutIsAnError(t *testing.T) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	h := entry(tar.TypeReg, "f", "")
	h.Size = 100000
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := writeTree(&stream, "f", filepath.Join(t.TempDir(), "f"), func(string) {}); err == nil {
		t.Error("half a file is taken for a whole one")
	}
}

// FuzzTree writes what any stream says, and looks whether something came to stand outside.
func FuzzTree(f *testing.F) {
	for _, h := range []tar.Header{entry(tar.TypeReg, "etc/x", ""), entry(tar.TypeSymlink, "etc/x", "../.."), entry(tar.TypeReg, "../x", ""), entry(tar.TypeLink, "etc/y", "../../secret")} {
		var stream bytes.Buffer
		w := tar.NewWriter(&stream)
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte("abc")[:h.Size]); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(stream.Bytes())
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		root := t.TempDir()
		destination := filepath.Join(root, "in", "here")
		if err := os.MkdirAll(filepath.Dir(destination), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = writeTree(bytes.NewReader(stream), "etc", destination, func(string) {})
		for _, dir := range []struct{ name, may string }{{root, "in"}, {filepath.Join(root, "in"), "here"}} {
			entries, err := os.ReadDir(dir.name)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != dir.may {
					t.Errorf("%s was written outside", e.Name())
				}
			}
		}
	})
}
