package diskformat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/test/env"
)

// These tests hold our understanding of disks against QEMU's own.

func qemu(t *testing.T, program string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		env.Missing(t, "needs "+program+", of qemu-utils")
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	// Encryption measures how fast it is, and gives up where processor time is counted coarsely.
	for tries := 0; tries < 50 && bytes.Contains(out, []byte("Unable to get accurate CPU usage")); tries++ {
		out, err = exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func inspectFile(t *testing.T, path string) (Info, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Inspect(f, st.Size())
}

func TestQEMUFindsNoFaultInAnOverlay(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
	raw := write(t, filepath.Join(dir, "base.raw"), make([]byte, 1<<20))
	for _, size := range []int64{1 << 20, 1<<20 + 1, 512 << 20, 512<<20 + 512, 20 << 30, 4 << 40, 16 << 40, MaxVirtualSize} {
		for _, o := range []OverlayOptions{
			{Size: size},
			{Size: size, Backing: base, BackingFormat: QCOW2},
			{Size: size, Backing: raw, BackingFormat: Raw},
		} {
			t.Run(fmt.Sprintf("%d bytes over %q", size, o.BackingFormat), func(t *testing.T) {
				b, err := Overlay(o)
				if err != nil {
					t.Fatal(err)
				}
				path := write(t, filepath.Join(t.TempDir(), "overlay.qcow2"), b)
				qemu(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
				var got struct {
					VirtualSize   int64  `json:"virtual-size"`
					Backing       string `json:"backing-filename"`
					BackingFormat string `json:"backing-filename-format"`
				}
				if err := json.Unmarshal([]byte(qemu(t, "qemu-img", "info", "--output=json", path)), &got); err != nil {
					t.Fatal(err)
				}
				want := (size + 511) / 512 * 512
				if got.VirtualSize != want || got.Backing != o.Backing || got.BackingFormat != string(o.BackingFormat) {
					t.Errorf("qemu-img sees %+v, want %d bytes over %+v", got, want, o)
				}
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				virtualSize, backing, err := InspectOverlay(f, int64(len(b)))
				if err != nil || virtualSize != want || backing != o.Backing {
					t.Errorf("we see %d bytes over %q, %v", virtualSize, backing, err)
				}
			})
		}
	}
}

// TestDataGoesThroughAnOverlay writes over data of the base, at its end, and beyond it, as a guest would.
func TestDataGoesThroughAnOverlay(t *testing.T) {
	dir := t.TempDir()
	const baseSize, size = 3 << 20, 700 << 30
	data := make([]byte, baseSize)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	raw := write(t, filepath.Join(dir, "base.raw"), data)
	b, err := Overlay(OverlayOptions{Size: size, Backing: raw, BackingFormat: Raw})
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(dir, "overlay.qcow2"), b)
	qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0xab 1M 64k", "-c", "write -P 0xcd 699G 1M", "-c", "write -P 0xef 3M 4k", path)
	qemu(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
	for _, read := range []string{"read -P 0xab 1M 64k", "read -P 0xcd 699G 1M", "read -P 0xef 3M 4k", "read -P 0 4M 1M"} {
		if out := qemu(t, "qemu-io", "-r", "-f", "qcow2", "-c", read, path); strings.Contains(out, "verification failed") {
			t.Errorf("%s: %s", read, out)
		}
	}
	want := append([]byte(nil), data...)
	for i := range 64 << 10 {
		want[1<<20+i] = 0xab
	}
	expected := write(t, filepath.Join(dir, "expected.raw"), want)
	through := filepath.Join(dir, "through.raw")
	qemu(t, "qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=3", "if="+path, "of="+through)
	qemu(t, "qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", expected, through)
	if after, err := os.ReadFile(raw); err != nil || string(after) != string(data) {
		t.Errorf("the base has changed, %v", err)
	}
}

func TestInspectTakesWhatQEMUMakes(t *testing.T) {
	for _, options := range []string{
		"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on", "refcount_bits=1",
		"refcount_bits=64", "extended_l2=on,cluster_size=128k", "compression_type=zstd", "preallocation=metadata",
	} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "200M")
			qemu(t, "qemu-io", "-c", "write -P 7 0 1M", "-c", "write -P 7 199M 1M", path)
			if got, err := inspectFile(t, path); err != nil || got != (Info{QCOW2, 200 << 20}) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	t.Run("internal snapshots, bitmaps, compressed clusters", func(t *testing.T) {
		dir := t.TempDir()
		plain, path := filepath.Join(dir, "plain.qcow2"), filepath.Join(dir, "disk.qcow2")
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", plain, "200M")
		qemu(t, "qemu-io", "-c", "write -P 7 0 20M", plain)
		qemu(t, "qemu-img", "convert", "-c", "-O", "qcow2", plain, path)
		qemu(t, "qemu-img", "snapshot", "-c", "one", path)
		qemu(t, "qemu-img", "bitmap", "--add", path, "changes")
		if got, err := inspectFile(t, path); err != nil || got != (Info{QCOW2, 200 << 20}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestInspectRefusesWhatQEMUMakes(t *testing.T) {
	for name, c := range map[string]struct {
		make   []string
		reason v1alpha1.Reason
	}{
		"a backing file": {[]string{"-f", "qcow2", "-b", "/dev/null", "-F", "raw", "disk", "1M"}, v1alpha1.ReasonImageUnsafe},
		"a data file":    {[]string{"-f", "qcow2", "-o", "data_file=data.raw", "disk", "1M"}, v1alpha1.ReasonImageUnsafe},
		"encryption":     {[]string{"--object", "secret,id=s,data=x", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "disk", "1M"}, v1alpha1.ReasonImageUnsafe},
		"AES":            {[]string{"--object", "secret,id=s,data=x", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s", "disk", "1M"}, v1alpha1.ReasonImageUnsafe},
		"LUKS":           {[]string{"--object", "secret,id=s,data=x", "-f", "luks", "-o", "key-secret=s,iter-time=10", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"qcow1":          {[]string{"-f", "qcow", "disk", "1M"}, v1alpha1.ReasonImageUnsafe},
		"VMDK":           {[]string{"-f", "vmdk", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"VMDK in parts":  {[]string{"-f", "vmdk", "-o", "subformat=monolithicFlat", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"VHDX":           {[]string{"-f", "vhdx", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"a dynamic VHD":  {[]string{"-f", "vpc", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"a fixed VHD":    {[]string{"-f", "vpc", "-o", "subformat=fixed", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"VDI":            {[]string{"-f", "vdi", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"QED":            {[]string{"-f", "qed", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
		"Parallels":      {[]string{"-f", "parallels", "disk", "1M"}, v1alpha1.ReasonImageNotDisk},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			qemu(t, "qemu-img", append([]string{"create", "-q", "-u"}, c.make...)...)
			info, err := inspectFile(t, "disk")
			if fault.ReasonOf(err) != c.reason {
				t.Errorf("%+v, %v; want %s", info, err, c.reason)
			}
		})
	}
}
