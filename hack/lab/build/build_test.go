package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestModulesLoadAfterWhatTheyNeed(t *testing.T) {
	const dep = "kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko\n" +
		"kernel/virtio/virtio_ring.ko:\n" +
		"kernel/virtio/virtio_pci.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n"
	got, err := moduleOrder(dep, []string{"virtio_pci", "virtio"})
	want := []string{"kernel/virtio/virtio_ring.ko", "kernel/virtio/virtio.ko", "kernel/virtio/virtio_pci.ko"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := moduleOrder(dep, []string{"none"}); err == nil {
		t.Error("a module that is not there must be an error")
	}
}

func TestModuleVersionIsReadFromGoMod(t *testing.T) {
	const mod = "module x\n\nrequire example.com/one v1.2.3\n\nrequire (\n\texample.com/two/v2 v2.0.1 // indirect\n)\n"
	for module, want := range map[string]string{"example.com/one": "v1.2.3", "example.com/two/v2": "v2.0.1"} {
		if got, err := moduleVersion(mod, module); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", module, got, err, want)
		}
	}
	if _, err := moduleVersion(mod, "example.com/three"); err == nil {
		t.Error("a module that is not required must be an error")
	}
}

func TestCpioMembersArePadded(t *testing.T) {
	from := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(from, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeCpio(&out, []entry{{"dir", "", 0o755}, {"dir/f", from, 0o644}}); err != nil {
		t.Fatal(err)
	}
	// Headers are 110 bytes; header with name, and data, are multiples of 4.
	if want := 116 + 116 + 8 + 124; out.Len() != want {
		t.Errorf("archive has %d bytes, want %d", out.Len(), want)
	}
	if !bytes.Contains(out.Bytes(), []byte("hello\x00\x00\x00070701")) {
		t.Error("data is not padded to the next header")
	}
}

func TestAnInitramfsIsAddedTo(t *testing.T) {
	dir := t.TempDir()
	base, all := filepath.Join(dir, "base"), filepath.Join(dir, "all")
	if err := os.WriteFile(base, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := addToInitramfs(all, base, []entry{{"more", "", 0o755}}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(all)
	if err != nil {
		t.Fatal(err)
	}
	const gzipMagic = "\x1f\x8b"
	if want := "first\x00\x00\x00" + gzipMagic; !strings.HasPrefix(string(raw), want) {
		t.Errorf("it begins with %q, not with %q", raw[:min(len(raw), len(want))], want)
	}
	if left, err := os.ReadFile(base); err != nil || string(left) != "first" {
		t.Errorf("what it was added to is %q now, %v", left, err)
	}
}

func TestBootRecordHasBothPartitions(t *testing.T) {
	r := bootRecord([]byte{0xfa})
	if len(r) != sector || r[0] != 0xfa || r[446] != 0x80 || r[450] != 0x0c || r[466] != 0x83 || r[510] != 0x55 || r[511] != 0xaa {
		t.Errorf("record %x", r)
	}
}

func TestAPartIsMadeOnceAndNeverHalf(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Progress: &Progress{Out: io.Discard}}
	made := 0
	fill := func(dir string) error {
		made++
		return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	}
	if _, err := c.part("p", "1", func(string) error { return errors.New("no") }); err == nil {
		t.Fatal("a failure must be told")
	}
	for _, key := range []string{"1", "1", "2"} {
		dir, err := c.part("p", key, fill)
		if err != nil {
			t.Fatal(err)
		}
		if !exists(filepath.Join(dir, "file")) {
			t.Errorf("key %s: the part is empty", key)
		}
	}
	if made != 2 {
		t.Errorf("made %d times, want once for each key", made)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "p-*")); len(left) != 2 { // the newest, and the lock
		t.Errorf("left in the cache: %q", left)
	}
}

func TestAnImageCarriesItsFiles(t *testing.T) {
	from := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(from, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := Data([]File{{Path: "/disk/f.img", From: from, Mode: 0o440, UID: qemuUID}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := SaveImage(img, dir); err != nil {
		t.Fatal(err)
	}
	if img, err = LoadImage(dir); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatal(len(layers), err)
	}
	in, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name)
	}
	if diff := cmp.Diff([]string{"./disk/", "./disk/f.img"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestReleaseIsOfItsCommit(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	output := func(command ...string) string {
		t.Helper()
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		return strings.TrimSpace(string(out))
	}
	const program = "package main\n\nvar version string\n\nfunc main() { print(version, \" says \", `then`) }\n"
	write("go.mod", "module example.com/then\n")
	write("cmd/says/main.go", program)
	output("git", "-C", root, "init", "--quiet")
	output("git", "-C", root, "add", ".")
	output("git", "-C", root, "-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--message=then")
	commit := output("git", "-C", root, "rev-parse", "HEAD")
	write("cmd/says/main.go", strings.Replace(program, "then", "now", 1))

	cache := &Cache{Dir: t.TempDir(), Progress: &Progress{Out: io.Discard}}
	dir, err := cache.Release(root, "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command(filepath.Join(dir, "bin", "says")).CombinedOutput()
	if want := commit + " says then"; string(said) != want || err != nil {
		t.Errorf("it says %q, %v; want %q", said, err, want)
	}
	if _, err := cache.Release(root, strings.Repeat("0", 40)); err == nil || !strings.Contains(err.Error(), "git fetch") {
		t.Errorf("a commit that is missing is not told of: %v", err)
	}
}

func TestAProgramIsFoundByItsOtherNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth-shim")
	if err := os.WriteFile(path, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := Binary(path, "65532:65532", "ls", "tar")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	in, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSuffix(h.Name+" "+h.Linkname, " "))
	}
	want := []string{"./berth-shim", "./bin/", "./bin/ls /berth-shim", "./bin/tar /berth-shim", "./sbin bin", "./usr/", "./usr/bin ../bin", "./usr/sbin ../bin"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
