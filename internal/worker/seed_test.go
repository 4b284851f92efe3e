package worker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/flate"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
	"github.com/berth-dev/berth/test/brokendisk"
	"github.com/berth-dev/berth/test/env"
)

func qemu(t *testing.T, program string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		env.Missing(t, "needs "+program+", of qemu-utils")
	}
	if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// pattern is a disk with what compresses, what does not, and zeroes of several sizes.
func pattern(size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < size; {
		piece := b[at:min(size, at+r.IntN(300<<10))]
		switch r.IntN(3) {
		case 0:
			for i := range piece {
				piece[i] = byte(r.Uint32())
			}
		case 1:
			for i := range piece {
				piece[i] = "a guest's disk, that is compressed well"[i%37]
			}
		}
		at += len(piece) + 1
	}
	copy(b, "boot")
	return b
}

// loop makes a loop device of a file.
func loop(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		env.Missing(t, fmt.Sprintf("needs a loop device: %v: %s", err, out))
	}
	name := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return name
}

// TestAsQEMUConverts compares what a worker writes with what qemu-img does.
func TestAsQEMUConverts(t *testing.T) {
	const size = 20*mib + 3*512
	dir := t.TempDir()
	raw := write(t, filepath.Join(dir, "raw"), pattern(size))
	for name, convert := range map[string][]string{
		"raw":            nil,
		"qcow2":          {},
		"version 2":      {"-o", "compat=0.10"},
		"small clusters": {"-o", "cluster_size=512"},
		"large clusters": {"-c", "-o", "cluster_size=2M"},
		"zlib":           {"-c"},
		"zstd":           {"-c", "-o", "compression_type=zstd"},
		"zstd, large":    {"-c", "-o", "compression_type=zstd,cluster_size=2M"},
		"extended L2":    {"-o", "extended_l2=on"},
		"extended, zlib": {"-c", "-o", "extended_l2=on,cluster_size=128k"},
		"allocated":      {"-S", "0", "-o", "preallocation=metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			image, format := raw, diskformat.Raw
			if convert != nil {
				image, format = filepath.Join(t.TempDir(), "image.qcow2"), diskformat.QCOW2
				qemu(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, convert...), raw, image)...)
			}
			seed := &Seed{Digest: "sha256:0", Format: format, Size: size}
			want := read(t, raw)

			t.Run("to a file", func(t *testing.T) {
				volume := t.TempDir()
				a := ask(t, Request{Name: diskName, Size: 32 * mib, Seed: seed}, volume, image)
				if diff := cmp.Diff(Answer{Result: &Result{Size: 32 * mib, Target: 32 * mib, Made: true, Seeded: true}}, a); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if got := read(t, filepath.Join(volume, diskName)); !bytes.Equal(got, append(want, make([]byte, 32*mib-size)...)) {
					t.Error("the disk is another than the image")
				}
				if diff := cmp.Diff([]string{diskName}, names(t, volume)); diff != "" {
					t.Errorf("in the volume (-want +got):\n%s", diff)
				}
				if st := stat(t, filepath.Join(volume, diskName)); st.Blocks*512 >= size {
					t.Errorf("it takes %d bytes", st.Blocks*512)
				}
				// A worker that was killed before it could tell is believed by what it left.
				a = ask(t, Request{Name: diskName, Size: 32 * mib, Seed: seed}, volume, image)
				if diff := cmp.Diff(Answer{Result: &Result{Size: 32 * mib, Target: 32 * mib, Seeded: true}}, a); diff != "" {
					t.Errorf("again (-want +got):\n%s", diff)
				}
			})
			t.Run("to a device", func(t *testing.T) {
				// Behind its first MiB, a device may have anything.
				backing := write(t, filepath.Join(t.TempDir(), "backing"), append(make([]byte, mib), bytes.Repeat([]byte{0xaa}, 31*mib)...))
				device := loop(t, backing)
				r := Request{Name: filepath.Base(device), Block: true, Seed: seed}
				for range 2 {
					a := ask(t, r, "/dev", image)
					if diff := cmp.Diff(Answer{Result: &Result{Size: 32 * mib, Target: 32 * mib, Seeded: true}}, a); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				}
				if got := read(t, device); !bytes.Equal(got[:size], want) || !bytes.Equal(got[size:], bytes.Repeat([]byte{0xaa}, 32*mib-size)) {
					t.Error("the disk is another than the image")
				}
			})
		})
	}
}

// TestMemory seeds a large image in a process that is limited as a worker is.
func TestMemory(t *testing.T) {
	const size = 256 * mib
	dir := t.TempDir()
	raw, image := write(t, filepath.Join(dir, "raw"), pattern(size)), filepath.Join(dir, "image.qcow2")
	qemu(t, "qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=2M", raw, image)
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	a, status := child(t, Request{Name: diskName, Size: size, Seed: &Seed{Format: diskformat.QCOW2, Size: size}}, volume, image, 64055)
	if a.Result == nil || !a.Result.Seeded {
		t.Fatalf("%+v", a.Error)
	}
	var kib int
	_, peak, _ := strings.Cut(status, "VmHWM:")
	if _, err := fmt.Sscan(peak, &kib); err != nil || kib > 64<<10 {
		t.Errorf("it took %d KiB, %v", kib, err)
	}
}

// deviceOf has a worker answer for a regular file in place of a block device.
func deviceOf(t testing.TB, r Request, path, image string) (Result, error) {
	t.Helper()
	f := open(t, path, os.O_RDWR)
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{Request: r, image: open(t, image, os.O_RDONLY)}
	w.answers = json.NewEncoder(io.Discard)
	return w.ensureSeeded(t.Context(), device{f}, st.Size())
}

func TestDevice(t *testing.T) {
	const size = 2 * mib
	boot := pattern(size)
	behind := append(make([]byte, mib), boot[mib:]...)
	marked := append([]byte(mark+"sha256:1"), make([]byte, size)...)
	part := slices.Clone(boot)
	copy(part, mark+"sha256:1\x00\x00\x00")
	data := pattern(4 * mib)[mib:]
	for name, c := range map[string]struct {
		disk   []byte
		image  []byte // nil if there is none
		ask    Request
		want   Result
		reason v1alpha1.Reason
		says   string
		after  []byte // nil if it stays as it is
	}{
		"blank":                         {disk: make([]byte, size)},
		"blank, and an image":           {disk: make([]byte, size), image: boot, want: Result{Seeded: true}, after: boot},
		"blank but behind":              {disk: append(make([]byte, mib), 'x'), image: boot[:mib], want: Result{Seeded: true}, after: append(boot[:mib:mib], 'x')},
		"less than 1 MiB":               {disk: make([]byte, 4096), image: boot[:4096], want: Result{Seeded: true}, after: boot[:4096]},
		"blank, to be read":             {disk: make([]byte, size), image: boot, ask: Request{ReadOnly: true}},
		"data":                          {disk: data},
		"data, and an image":            {disk: data, image: boot, want: Result{}},
		"data at the end of the MiB":    {disk: append(make([]byte, mib-1), 1), image: boot[:mib], want: Result{}},
		"the image, whole":              {disk: boot, image: boot, want: Result{Seeded: true}},
		"half an image":                 {disk: part, image: boot, want: Result{Seeded: true}, after: boot},
		"half an image, then none":      {disk: marked, reason: v1alpha1.ReasonVolumeUnsafe, says: "half an image (\"berth-seed 1 sha256:1\")"},
		"half an image, to be read":     {disk: marked, image: boot, ask: Request{ReadOnly: true}, reason: v1alpha1.ReasonVolumeUnsafe, says: "half an image"},
		"known, whatever it is":         {disk: make([]byte, size), image: boot, ask: Request{Known: true}},
		"an image that is too large":    {disk: make([]byte, mib), image: boot, reason: v1alpha1.ReasonVolumeTooSmall, says: "a disk of 2097152 bytes"},
		"an image with nothing in it":   {disk: make([]byte, size), image: behind, reason: v1alpha1.ReasonImageUnsafe, says: "volumeMode Filesystem"},
		"an image that looks like half": {disk: make([]byte, size), image: part, reason: v1alpha1.ReasonImageUnsafe, says: "half an image"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, filepath.Join(dir, "device"), c.disk)
			image := ""
			if c.image != nil {
				image = write(t, filepath.Join(dir, "image"), c.image)
				c.ask.Seed = &Seed{Digest: "sha256:1", Format: diskformat.Raw, Size: int64(len(c.image))}
			}
			c.want.Size, c.want.Target = int64(len(c.disk)), int64(len(c.disk))
			got, err := deviceOf(t, c.ask, path, image)
			if c.reason == "" {
				if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
					t.Errorf("%v (-want +got):\n%s", err, diff)
				}
			} else if fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%+v, %v; want %s: %s", got, err, c.reason, c.says)
			}
			if c.after == nil {
				c.after = c.disk
			}
			if !bytes.Equal(c.after, read(t, path)) {
				t.Error("the device has something else afterwards")
			}
		})
	}
	t.Run("no device", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "data.raw"), nil)
		for name, reason := range map[string]v1alpha1.Reason{"data.raw": v1alpha1.ReasonVolumeUnsafe, "other.raw": v1alpha1.ReasonVolumeMissing} {
			if a := ask(t, Request{Name: name, Block: true}, dir, ""); a.Error == nil || a.Error.Reason != reason {
				t.Errorf("%s: %+v, %+v", name, a.Result, a.Error)
			}
		}
	})
}

func TestFileAndImage(t *testing.T) {
	const size = 2 * mib
	boot := pattern(size)
	image := write(t, filepath.Join(t.TempDir(), "image"), boot)
	seed := func(format diskformat.Format, size int64) *Seed {
		return &Seed{Digest: "sha256:1", Format: format, Size: size}
	}
	for name, c := range map[string]struct {
		disk []byte // nil if there is none
		ask  Request
		want Answer
	}{
		"data":                       {bytes.Repeat([]byte{1}, size), Request{Seed: seed(diskformat.Raw, size)}, Answer{Result: &Result{}}},
		"data, blank as it is":       {make([]byte, size), Request{Seed: seed(diskformat.Raw, size)}, Answer{Result: &Result{}}},
		"data, known":                {bytes.Repeat([]byte{1}, size), Request{Known: true, Seed: seed(diskformat.Raw, size)}, Answer{Result: &Result{}}},
		"none, known":                {nil, Request{Known: true, Seed: seed(diskformat.Raw, size)}, Answer{Error: &Error{Reason: v1alpha1.ReasonVolumeMissing}}},
		"an image too large":         {nil, Request{Size: mib, Seed: seed(diskformat.Raw, size)}, Answer{Error: &Error{Reason: v1alpha1.ReasonVolumeTooSmall}}},
		"an image of another size":   {nil, Request{Seed: seed(diskformat.Raw, mib)}, Answer{Error: &Error{Reason: v1alpha1.ReasonImageUnsafe}}},
		"an image of another format": {nil, Request{Seed: seed(diskformat.QCOW2, size)}, Answer{Error: &Error{Reason: v1alpha1.ReasonImageUnsafe}}},
		"no format":                  {nil, Request{Seed: seed("", size)}, Answer{Error: &Error{Reason: v1alpha1.ReasonInternalError}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, diskName)
			if c.disk != nil {
				write(t, path, c.disk)
				c.want.Result.Size, c.want.Result.Target = size, size
				c.ask.Size = size
			}
			c.ask.Name = diskName
			got := ask(t, c.ask, dir, image)
			if got.Error != nil {
				got.Error.Message = ""
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.disk == nil {
				if left := names(t, dir); left != nil {
					t.Errorf("left %v", left)
				}
			} else if !bytes.Equal(c.disk, read(t, path)) {
				t.Error("the disk has changed")
			}
		})
	}
}

// TestAnImageThatBeginsBlank: that a disk begins as it does tells nothing.
func TestAnImageThatBeginsBlank(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, diskName), make([]byte, 2*mib))
	image := write(t, filepath.Join(t.TempDir(), "image"), append(make([]byte, mib), 'x'))
	a := ask(t, Request{Name: diskName, Size: 2 * mib, Seed: &Seed{Format: diskformat.Raw, Size: mib + 512}}, dir, image)
	if diff := cmp.Diff(Answer{Result: &Result{Size: 2 * mib, Target: 2 * mib}}, a); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestVolumeFull is a volume whose room somebody else took.
func TestVolumeFull(t *testing.T) {
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: it mounts a tmpfs")
	}
	const size = 40 * mib
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64M"); err != nil {
		env.Missing(t, "needs the right to mount: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(dir, "other"), bytes.Repeat([]byte{1}, 32*mib))
	image := write(t, filepath.Join(t.TempDir(), "image"), bytes.Repeat([]byte{1}, size))
	a := ask(t, Request{Name: diskName, Seed: &Seed{Format: diskformat.Raw, Size: size}}, dir, image)
	if a.Error == nil || a.Error.Reason != v1alpha1.ReasonVolumeTooSmall || !strings.Contains(a.Error.Message, "remove what else") {
		t.Errorf("%+v, %+v", a.Result, a.Error)
	}
	if diff := cmp.Diff([]string{"other"}, names(t, dir)); diff != "" {
		t.Errorf("in the volume (-want +got):\n%s", diff)
	}
}

// cut breaks a disk at its nth change.
type cut struct {
	disk    *brokendisk.Disk
	mu      sync.Mutex
	changes []string
}

func (c *cut) at(n int) {
	c.changes = nil
	c.disk.Break(false)
	c.disk.Before(func(change string) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changes = append(c.changes, change)
		return len(c.changes) <= n
	})
}

func brokenDisk(t *testing.T) (c *cut, real, at string) {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: it mounts")
	}
	real, at = t.TempDir(), t.TempDir()
	disk, err := brokendisk.Mount(real, at)
	if err != nil {
		env.Missing(t, "needs the right to mount, and FUSE: "+err.Error())
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return &cut{disk: disk}, real, at
}

// TestFileCutAtEachChange breaks the volume at the nth change to it, for every n: afterwards there is no disk, or a whole
// one, and the next worker makes it.
func TestFileCutAtEachChange(t *testing.T) {
	const size = 3 * mib
	boot := pattern(size)
	image := write(t, filepath.Join(t.TempDir(), "image"), boot)
	for name, seed := range map[string]*Seed{"blank": nil, "seeded": {Digest: "sha256:1", Format: diskformat.Raw, Size: size}} {
		t.Run(name, func(t *testing.T) {
			c, real, at := brokenDisk(t)
			want := make([]byte, 4*mib)
			if seed != nil {
				copy(want, boot)
			}
			r := Request{Name: diskName, Size: 4 * mib, Seed: seed}
			path := filepath.Join(real, diskName)
			for n := 0; ; n++ {
				c.at(n)
				a := ask(t, r, at, image)
				if len(c.changes) <= n { // nothing was cut
					if a.Result == nil || !a.Result.Made || n < 4 {
						t.Errorf("%d changes: %+v, %+v", n, a.Result, a.Error)
					}
					renamed := slices.Index(c.changes, "rename")
					if renamed < 1 || c.changes[renamed-1] != "fsync" {
						t.Errorf("named before it was on the medium: %v", c.changes)
					}
					break
				}
				if _, err := os.Lstat(path); err == nil && !bytes.Equal(read(t, path), want) {
					t.Fatalf("half a disk after %v", c.changes)
				}
				c.at(1 << 30)
				if a = ask(t, r, at, image); a.Result == nil || a.Result.Seeded != (seed != nil) || !bytes.Equal(read(t, path), want) {
					t.Fatalf("the next one after %v: %+v, %+v", c.changes, a.Result, a.Error)
				}
				if err := os.Remove(filepath.Join(at, diskName)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestDeviceCutAtEachChange is the same for a device: blank, marked, or whole.
func TestDeviceCutAtEachChange(t *testing.T) {
	const size = 3 * mib
	boot := pattern(size)
	image := write(t, filepath.Join(t.TempDir(), "image"), boot)
	c, real, at := brokenDisk(t)
	r := Request{Seed: &Seed{Digest: "sha256:1", Format: diskformat.Raw, Size: size}}
	blank := make([]byte, size)
	path := filepath.Join(real, "device")
	seen := map[string]bool{}
	for n := 0; ; n++ {
		write(t, path, blank)
		c.at(n)
		result, err := deviceOf(t, r, filepath.Join(at, "device"), image)
		if len(c.changes) <= n {
			if err != nil || !result.Seeded {
				t.Errorf("%d changes: %+v, %v", n, result, err)
			}
			break
		}
		switch got := read(t, path); {
		case bytes.Equal(got, blank):
			seen["blank"] = true
		case bytes.HasPrefix(got, []byte(mark)):
			seen["marked"] = true
		case bytes.Equal(got, boot):
			seen["whole"] = true
		default:
			t.Fatalf("half an image after %v", c.changes)
		}
		c.at(1 << 30)
		if result, err = deviceOf(t, r, filepath.Join(at, "device"), image); err != nil || !result.Seeded || !bytes.Equal(read(t, path), boot) {
			t.Fatalf("the next one after %v: %+v, %v", c.changes, result, err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("saw %v", seen)
	}
	// What the medium has not confirmed may be lost in any order, so the mark stands and falls between two flushes.
	first, end := "write 0 512", len(c.changes)
	if c.changes[0] != first || c.changes[1] != "fsync" || !slices.Equal(c.changes[end-3:], []string{"fsync", first, "fsync"}) {
		t.Errorf("written in the order %v", c.changes)
	}
	for _, change := range c.changes[2 : end-3] {
		var offset, n int
		if _, err := fmt.Sscanf(change, "write %d %d", &offset, &n); err != nil || offset < 512 {
			t.Errorf("between them: %s", change)
		}
	}
}

const cluster64 = 64 << 10

// handmade is a qcow2 disk of 1 MiB: clusters of data, of zeroes, and compressed, and none.
func handmade(t testing.TB) []byte {
	t.Helper()
	b, err := diskformat.Overlay(diskformat.OverlayOptions{Size: mib})
	if err != nil {
		t.Fatal(err)
	}
	var compressed bytes.Buffer
	z, err := flate.NewWriter(&compressed, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(bytes.Repeat([]byte("compressed"), cluster64/10+1)[:cluster64]); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	at := int64(len(b))
	b = append(b, make([]byte, 2*cluster64)...)
	binary.BigEndian.PutUint64(b[3*cluster64:], 1<<63|uint64(at))
	for i, entry := range []uint64{1<<63 | uint64(at+cluster64), 1, 1<<62 | uint64(compressed.Len()/512)<<54 | uint64(at+2*cluster64)} {
		binary.BigEndian.PutUint64(b[int(at)+8*i:], entry)
	}
	copy(b[at+cluster64:], bytes.Repeat([]byte("data"), cluster64/4))
	return append(b, compressed.Bytes()...)
}

func TestHandmade(t *testing.T) {
	volume := t.TempDir()
	image := write(t, filepath.Join(t.TempDir(), "image"), handmade(t))
	in := fmt.Sprintf(`{"Name": %q, "Size": %d, "Seed": {"Format": "qcow2", "Size": %d}}`, diskName, mib, mib)
	var out bytes.Buffer
	if err := Run(t.Context(), strings.NewReader(in), &out, open(t, volume, unix.O_PATH), open(t, image, os.O_RDONLY)); err != nil {
		t.Fatal(err)
	}
	const says = `{"Progress":{"Done":1048576,"Total":1048576}}
{"Result":{"Size":1048576,"Target":1048576,"Made":true,"Seeded":true}}
`
	if diff := cmp.Diff(says, out.String()); diff != "" {
		t.Errorf("what it says (-want +got):\n%s", diff)
	}
	got := read(t, filepath.Join(volume, diskName))
	for at, want := range map[int]string{0: "data", cluster64: "\x00\x00\x00\x00", 2 * cluster64: "compressed", 3 * cluster64: "\x00"} {
		if found := string(got[at : at+len(want)]); found != want {
			t.Errorf("at byte %d: %q, want %q", at, found, want)
		}
	}
}

func TestHostileImages(t *testing.T) {
	l2 := 4 * cluster64 // of handmade
	for name, spoil := range map[string]func(b []byte) []byte{
		"data outside":           func(b []byte) []byte { binary.BigEndian.PutUint64(b[l2:], 1<<63|1<<40); return b },
		"data at the end of all": func(b []byte) []byte { binary.BigEndian.PutUint64(b[l2:], 1<<63|0x00fffffffffffe00); return b },
		"compressed, outside":    func(b []byte) []byte { binary.BigEndian.PutUint64(b[l2:], 1<<62|1<<40); return b },
		"no deflate stream":      func(b []byte) []byte { binary.BigEndian.PutUint64(b[l2:], 1<<62|uint64(l2+cluster64)); return b },
		"a stream that is too short": func(b []byte) []byte {
			copy(b[6*cluster64:], []byte{0x4b, 0x04, 0x00}) // deflate's "a"
			return b
		},
		"cut inside a cluster": func(b []byte) []byte { return b[:5*cluster64+100] },
		"a backing file": func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[8:], 1024)
			binary.BigEndian.PutUint32(b[16:], uint32(copy(b[1024:], "/etc/passwd")))
			return b
		},
		"a data file": func(b []byte) []byte { b[79] |= 4; return b },
		"zstd's frame in place of deflate's": func(b []byte) []byte {
			b[79] |= 8
			b[104] = 1
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, volume := t.TempDir(), t.TempDir()
			image := write(t, filepath.Join(dir, "image"), spoil(handmade(t)))
			seed := &Seed{Digest: "sha256:1", Format: diskformat.QCOW2, Size: mib}
			if a := ask(t, Request{Name: diskName, Size: mib, Seed: seed}, volume, image); a.Error == nil || a.Error.Reason != v1alpha1.ReasonImageUnsafe {
				t.Errorf("%+v, %+v", a.Result, a.Error)
			}
			if left := names(t, volume); left != nil {
				t.Errorf("left %v", left)
			}
			device := write(t, filepath.Join(dir, "device"), make([]byte, mib))
			if r, err := deviceOf(t, Request{Seed: seed}, device, image); fault.ReasonOf(err) != v1alpha1.ReasonImageUnsafe {
				t.Errorf("a device: %+v, %v", r, err)
			}
			if got := read(t, device); !bytes.HasPrefix(got, []byte(mark)) && !isZero(got) {
				t.Error("a device: it has half an image")
			}
		})
	}
}

// FuzzSeed seeds a device from any bytes. Nothing panics, and nothing is written behind the image's end.
func FuzzSeed(f *testing.F) {
	f.Add(handmade(f), true)
	f.Add(handmade(f)[:5*cluster64+100], true)
	f.Add(pattern(2*4096), false)
	f.Fuzz(func(t *testing.T, b []byte, qcow2 bool) {
		const size = 2 * mib
		seed := &Seed{Digest: "sha256:1", Format: diskformat.Raw, Size: (int64(len(b)) + 511) / 512 * 512}
		if qcow2 {
			info, err := diskformat.Inspect(bytes.NewReader(b), int64(len(b)))
			if err != nil || info.VirtualSize > 2*size {
				t.Skip()
			}
			seed.Format, seed.Size = diskformat.QCOW2, info.VirtualSize
		}
		dir := t.TempDir()
		image := write(t, filepath.Join(dir, "image"), b)
		path := write(t, filepath.Join(dir, "device"), append(make([]byte, mib), bytes.Repeat([]byte{0xaa}, size-mib)...))
		result, err := deviceOf(t, Request{Seed: seed}, path, image)
		if reason := fault.ReasonOf(err); err != nil && reason == v1alpha1.ReasonInternalError {
			t.Errorf("%v", err)
		}
		got := read(t, path)
		switch behind := max(seed.Size, mib); {
		case len(got) != size:
			t.Errorf("%d bytes, had %d", len(got), size)
		case behind < size && !bytes.Equal(got[behind:], bytes.Repeat([]byte{0xaa}, size-int(behind))):
			t.Error("written behind the image's end")
		case !result.Seeded && !bytes.HasPrefix(got, []byte(mark)) && !isZero(got[:mib]):
			t.Error("neither blank nor marked")
		}
	})
}

// TestReaderPanics is a fault of the reader's, which is not ours.
func TestReaderPanics(t *testing.T) {
	w := &worker{}
	s := &source{length: mib, size: mib, next: func(int64, int64) (int64, bool, error) { panic("index out of range") }}
	err := w.copy(t.Context(), s, file{open(t, write(t, filepath.Join(t.TempDir(), "disk"), nil), os.O_RDWR)})
	if fault.ReasonOf(err) != v1alpha1.ReasonImageUnsafe || !strings.Contains(err.Error(), "index out of range") {
		t.Error(err)
	}
}
