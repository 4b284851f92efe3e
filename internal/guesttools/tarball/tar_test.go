package tarball

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/test/env"
)

// run is tar, which must succeed.
func run(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := Run(args, bytes.NewReader(stdin), &stdout, &stderr); code != 0 || stderr.Len() != 0 {
		t.Fatalf("tar %q: code %d, %s", args, code, &stderr)
	}
	return stdout.Bytes()
}

// snapshot tells all of a tree: modes, owners, times of files, links, contents.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all, firsts := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(dir, path)
		text := fmt.Sprintf("%v %d:%d", info.Mode(), stat.Uid, stat.Gid)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			text = "link to " + target
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if first, ok := firsts[stat.Ino]; ok {
				text += " same as " + first
			} else {
				firsts[stat.Ino] = name
			}
			text += fmt.Sprintf(" %d %q", info.ModTime().Unix(), content)
		case name != ".":
			text += fmt.Sprint(" ", info.ModTime().Unix())
		}
		all[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tree is one of each.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	old := time.Unix(1_234_567_890, 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir+"/top/deep/"+strings.Repeat("long", 40), 0o755))
	must(os.WriteFile(dir+"/top/file", []byte("content\x00\n"), 0o640))
	must(os.WriteFile(dir+"/top/script", []byte("#!/bin/sh\n"), 0o755))
	must(os.Chmod(dir+"/top/script", 0o755|fs.ModeSetgid))
	must(os.WriteFile(dir+"/top/deep/empty", nil, 0o600))
	must(os.WriteFile(dir+"/top/ünïcode \n name", []byte("x"), 0o600))
	must(os.WriteFile(dir+"/top/deep/"+strings.Repeat("long", 40)+"/big", bytes.Repeat([]byte("0123456789"), 100_000), 0o600))
	must(os.Link(dir+"/top/file", dir+"/top/hard"))
	must(os.Symlink("file", dir+"/top/soft"))
	must(os.Symlink("/etc/passwd", dir+"/top/outside"))
	must(os.Symlink("deep", dir+"/top/to-dir"))
	if os.Geteuid() == 0 {
		must(os.Chown(dir+"/top/file", 1, 2))
	}
	must(os.Chtimes(dir+"/top/file", old, old))
	must(os.Chmod(dir+"/top/deep", 0o500))
	must(os.Chtimes(dir+"/top/deep", old, old))
	return dir
}

func TestATreeComesOutAsItWentIn(t *testing.T) {
	from, to := tree(t), t.TempDir()
	if err := os.Remove(from + "/top/hard"); err != nil { // hard links become files of their own
		t.Fatal(err)
	}
	archive := run(t, nil, "-cf", "-", "-C", from, "top")
	run(t, archive, "xf", "-", "-C", to)
	if diff := cmp.Diff(snapshot(t, from), snapshot(t, to)); diff != "" {
		t.Error(diff)
	}
	run(t, archive, "xf", "-", "-C", to) // over what is there
	if diff := cmp.Diff(snapshot(t, from), snapshot(t, to)); diff != "" {
		t.Error(diff)
	}
}

func TestGNUTarUnderstandsItAndIsUnderstood(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		env.Missing(t, "needs tar")
	}
	from, to := tree(t), t.TempDir()
	archive, err := exec.Command(gnu, "-cf", "-", "-C", from, "top").Output()
	if err != nil {
		t.Fatal(err)
	}
	run(t, archive, "-xf", "-", "-C", to)
	if diff := cmp.Diff(snapshot(t, from), snapshot(t, to)); diff != "" {
		t.Error(diff)
	}
	if err := os.Remove(from + "/top/hard"); err != nil {
		t.Fatal(err)
	}
	to = t.TempDir()
	theirs := exec.Command(gnu, "-xf", "-", "-C", to)
	theirs.Stdin = bytes.NewReader(run(t, nil, "cf", "-", "-C", from, "top"))
	if out, err := theirs.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff(snapshot(t, from), snapshot(t, to)); diff != "" {
		t.Error(diff)
	}
}

// TestItIsWhatKubectlCpCalls has the arguments of k8s.io/kubectl/pkg/cmd/cp.
func TestItIsWhatKubectlCpCalls(t *testing.T) {
	from, to := tree(t), t.TempDir()
	archive := run(t, nil, "cf", "-", from+"/top/file")
	in := tar.NewReader(bytes.NewReader(archive))
	header, err := in.Next()
	if err != nil || header.Name != strings.TrimPrefix(from, "/")+"/top/file" {
		t.Fatalf("%v, %v", header, err)
	}
	var made bytes.Buffer
	out := tar.NewWriter(&made)
	for _, h := range []*tar.Header{
		{Name: "dir/file", Typeflag: tar.TypeReg, Mode: 0o6777, Size: 2, Uid: 77, Gid: 78, ModTime: time.Unix(1, 0)},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "dir", Mode: 0o777},
	} {
		if err := out.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(out, "hi"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Umask(syscall.Umask(0o022))
	run(t, made.Bytes(), "--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", to)
	info, err := os.Stat(to + "/link/file")
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); info.Mode() != 0o755 || stat.Uid != uint32(os.Geteuid()) || info.ModTime().Unix() == 1 {
		t.Errorf("mode %v, owner %d, time %v", info.Mode(), stat.Uid, info.ModTime())
	}
	run(t, made.Bytes(), "-xmf", "-", "-C", to)
	if info, err = os.Stat(to + "/dir/file"); err != nil || info.Mode().Perm() != 0o777 || info.ModTime().Unix() == 1 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestWhatItDoesNotKnowIsRefused(t *testing.T) {
	for _, args := range []string{"", "cf", "c", "cf -", "xf - -C", "czf - x", "xf - x", "cxf - x", "--zstd -cf - x", "cf file x", "-xf - -C /no/such", "cf - /no/such", "cf - -C /no/such ."} {
		var stdout, stderr bytes.Buffer
		if code := Run(strings.Fields(args), strings.NewReader(""), &stdout, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("tar %s: code %d, %q", args, code, &stderr)
		}
	}
}

func TestWhatIsNoFileIsSaidAndTheRestArchived(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(syscall.Mkfifo(dir+"/fifo", 0o600), os.WriteFile(dir+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := Run([]string{"cf", "-", dir}, nil, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "fifo") || !strings.Contains(stdout.String(), "/file") {
		t.Errorf("code %d, %q", code, &stderr)
	}
}

// world is a directory with a destination and what is outside of it.
func world(t testing.TB) (dir, dest string) {
	t.Helper()
	dir = t.TempDir()
	dest = dir + "/dest"
	for path, text := range map[string]string{"/secret": "s", "/outside/file": "f", "/dest/inside": "i"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+path), 0o755), os.WriteFile(dir+path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Symlink(dir+"/outside", dest+"/absolute"), os.Symlink("../outside", dest+"/relative"), os.Symlink("../secret", dest+"/to-file"),
		os.Link(dir+"/secret", dest+"/hard"), os.Symlink("nowhere/../../outside/new", dest+"/dangling"))
	if err != nil {
		t.Fatal(err)
	}
	return dir, dest
}

var sameAsInside = regexp.MustCompile(` same as dest/\S+`)

// outside is all but the destination, and how many links it has.
func outside(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := snapshot(t, dir)
	for name := range all {
		if name == "dest" || strings.HasPrefix(name, "dest/") {
			delete(all, name)
		}
	}
	for i, text := range all {
		all[i] = sameAsInside.ReplaceAllString(text, "")
	}
	return all
}

func hostile(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if h.Mode == 0 {
			h.Mode = 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "evil"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// attacks are archives that want out; each also has a good file.
func attacks(t testing.TB) map[string][]byte {
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
	}
	dir := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeDir} }
	good := file("good")
	all := map[string][]byte{}
	for name, headers := range map[string][]*tar.Header{
		"dots":                         {file("../secret"), file("a/../../secret"), dir("..")},
		"a name of dots":               {file(".."), file(".")},
		"through links that are there": {file("absolute/file"), file("relative/file"), file("relative/new"), dir("relative/dir"), dir("absolute")},
		"over links that are there":    {file("to-file"), file("hard"), file("dangling")},
		"through its own links":        {link("l", ".."), file("l/secret"), link("m", "/"), file("m/tmp/berth-evil"), link("n", "l"), file("n/secret"), dir("l")},
		"hard links out":               {hard("h", "../secret"), hard("h2", "relative/file"), hard("h3", "to-file"), file("h"), file("h2"), file("h3"), hard("h4", "/secret")},
		"hard link and then file":      {hard("h", "hard"), file("h")},
		"directory modes out":          {link("d", "../outside"), dir("d"), dir("d/x")},
		"a link over a directory":      {dir("e"), link("e", "../outside"), file("e/file"), {Name: "e", Typeflag: tar.TypeDir, Mode: 0o7777, ModTime: time.Unix(1, 0)}},
		"a hard link over a directory": {dir("e"), hard("e", "hard")},
		"devices":                      {{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 8}, {Name: "chr", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "fifo", Typeflag: tar.TypeFifo}},
	} {
		all[name] = hostile(t, append(headers, good)...)
	}
	return all
}

func TestNothingIsWrittenOutside(t *testing.T) {
	for name, archive := range attacks(t) {
		t.Run(name, func(t *testing.T) {
			dir, dest := world(t)
			before := outside(t, dir)
			var stderr bytes.Buffer
			code := Run([]string{"xf", "-", "-C", dest}, bytes.NewReader(archive), io.Discard, &stderr)
			if diff := cmp.Diff(before, outside(t, dir)); diff != "" {
				t.Error(diff)
			}
			if text, err := os.ReadFile(dest + "/good"); err != nil || string(text) != "evil" {
				t.Errorf("the good file: %q, %v", text, err)
			}
			if code == 0 && !strings.Contains("over links that are there, hard link and then file, a hard link over a directory", name) || strings.ContainsFunc(stderr.String(), func(r rune) bool { return r < ' ' && r != '\n' }) {
				t.Errorf("code %d: %q", code, &stderr)
			}
		})
	}
	if _, err := os.Lstat("/tmp/berth-evil"); err == nil {
		t.Error("it wrote to /tmp")
	}
}

func TestAbsoluteNamesAreMadeRelative(t *testing.T) {
	dir, dest := world(t)
	before := outside(t, dir)
	run(t, hostile(t, &tar.Header{Name: dir + "/secret", Typeflag: tar.TypeReg}), "xf", "-", "-C", dest)
	if diff := cmp.Diff(before, outside(t, dir)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(dest + dir + "/secret"); err != nil {
		t.Error(err)
	}
}

func FuzzTar(f *testing.F) {
	for _, archive := range attacks(f) {
		f.Add(archive)
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		dir, dest := world(t)
		before := outside(t, dir)
		Run([]string{"xf", "-", "-C", dest}, bytes.NewReader(archive), io.Discard, io.Discard)
		if diff := cmp.Diff(before, outside(t, dir)); diff != "" {
			t.Error(diff)
		}
	})
}
