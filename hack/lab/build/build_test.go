package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
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
