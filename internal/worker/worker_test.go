package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/diskformat"
	"github.com/berth-dev/berth/test/env"
)

const childVariable = "BERTH_TEST_WORKER"

// TestMain is the worker's process too, in place of `berth-agent worker`.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	if err := Run(context.Background(), os.Stdin, os.Stdout, os.NewFile(3, "volume"), os.NewFile(4, "image")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		os.Exit(1)
	}
	os.Stderr.Write(status)
	os.Exit(0)
}

func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// ask has a worker answer in this process.
func ask(t testing.TB, r Request, dir, image string) Answer {
	t.Helper()
	in, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Run(t.Context(), bytes.NewReader(in), &out, open(t, dir, unix.O_PATH), open(t, image, os.O_RDONLY)); err != nil {
		t.Fatal(err)
	}
	return last(t, &out)
}

// last is the last of its answers.
func last(t testing.TB, out io.Reader) (a Answer) {
	t.Helper()
	for d := json.NewDecoder(out); ; {
		next := Answer{}
		if err := d.Decode(&next); errors.Is(err, io.EOF) {
			return a
		} else if err != nil {
			t.Fatal(err)
		}
		a = next
	}
}

// child has a worker answer in a process of its own, as a user without rights. It returns what /proc/PID/status said of
// the process in the end.
func child(t testing.TB, r Request, dir, image string, user uint32) (a Answer, status string) {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: it starts a process as another user")
	}
	in, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{childVariable + "=1", "GOMEMLIMIT=24MiB", "GOMAXPROCS=2"}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	cmd.ExtraFiles = []*os.File{open(t, dir, unix.O_PATH)}
	if image != "" {
		cmd.ExtraFiles = append(cmd.ExtraFiles, open(t, image, os.O_RDONLY))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	return last(t, bytes.NewReader(out)), stderr.String()
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

const diskName = "disk.img"

func TestBlankFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, newFile), []byte("left by a worker that was killed"))
	write(t, filepath.Join(dir, seedFile), []byte("and by another"))
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	r := Request{Name: diskName, Capacity: 64*mib + 1}
	if diff := cmp.Diff(Answer{Result: &Result{Size: 64 * mib, Target: 64 * mib, Made: true}}, ask(t, r, dir, "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{diskName}, names(t, dir)); diff != "" {
		t.Errorf("in the volume (-want +got):\n%s", diff)
	}
	if st := stat(t, filepath.Join(dir, diskName)); st.Mode != unix.S_IFREG|0o660 || st.Size != 64*mib || st.Blocks > 8 {
		t.Errorf("made with mode %o, %d bytes in %d sectors", st.Mode, st.Size, st.Blocks)
	}
	for _, r := range []Request{{Capacity: 96 * mib}, {Size: 96 * mib, Known: true}} { // it does not grow here
		r.Name = diskName
		if diff := cmp.Diff(Answer{Result: &Result{Size: 64 * mib, Target: 96 * mib}}, ask(t, r, dir, "")); diff != "" {
			t.Errorf("again (-want +got):\n%s", diff)
		}
	}
	// Nor does it shrink.
	if diff := cmp.Diff(Answer{Result: &Result{Size: 64 * mib, Target: 64 * mib}}, ask(t, Request{Name: diskName, Size: mib}, dir, "")); diff != "" {
		t.Errorf("smaller (-want +got):\n%s", diff)
	}
}

func TestFileThatIsThere(t *testing.T) {
	qcow2, err := diskformat.Overlay(diskformat.OverlayOptions{Size: mib})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("data"), 512)
	file := func(b []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { write(t, path, b) }
	}
	for name, c := range map[string]struct {
		make   func(t *testing.T, path string)
		ask    Request
		reason v1alpha1.Reason // "" if it is taken
		says   string
	}{
		"data":                        {file(data), Request{}, "", ""},
		"nothing in it":               {file(nil), Request{}, "", ""},
		"data to be read":             {file(data), Request{ReadOnly: true}, "", ""},
		"no file to be read":          {nil, Request{ReadOnly: true}, v1alpha1.ReasonVolumeMissing, "write a raw disk"},
		"a known file that is gone":   {nil, Request{Known: true}, v1alpha1.ReasonVolumeMissing, "put it back"},
		"qcow2":                       {file(qcow2), Request{}, v1alpha1.ReasonVolumeUnsafe, "qemu-img convert -O raw"},
		"qcow2 to be read":            {file(qcow2), Request{ReadOnly: true}, v1alpha1.ReasonVolumeUnsafe, "qemu-img convert -O raw"},
		"qcow2 by its magic alone":    {file([]byte("QFI\xfb")), Request{}, v1alpha1.ReasonVolumeUnsafe, "qemu-img convert -O raw"},
		"a guest's own qcow2":         {file(qcow2), Request{Known: true}, "", ""},
		"a disk too large to be made": {nil, Request{Size: 1 << 50}, v1alpha1.ReasonVolumeTooSmall, "lower the disk's size"},
		"a disk too large to grow":    {file(data), Request{Size: 1 << 50}, v1alpha1.ReasonVolumeTooSmall, "lower the disk's size"},
		"more than the claim":         {nil, Request{Size: 3 * mib, Capacity: 2 * mib}, v1alpha1.ReasonVolumeTooSmall, "room for one of 2097152"},
		"a claim of nothing":          {nil, Request{Capacity: mib - 1}, v1alpha1.ReasonVolumeTooSmall, "the least is 1Mi"},
		"a link": {func(t *testing.T, path string) {
			if err := os.Symlink(write(t, path+".real", data), path); err != nil {
				t.Fatal(err)
			}
		}, Request{}, v1alpha1.ReasonVolumeUnsafe, "not a regular file"},
		"two names": {func(t *testing.T, path string) {
			if err := os.Link(write(t, path+".real", data), path); err != nil {
				t.Fatal(err)
			}
		}, Request{}, v1alpha1.ReasonVolumeUnsafe, "hard links"},
		"a directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, Request{}, v1alpha1.ReasonVolumeUnsafe, "not a regular file"},
		"a FIFO": {func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, Request{ReadOnly: true}, v1alpha1.ReasonVolumeUnsafe, "not a regular file"},
		"a device": {func(t *testing.T, path string) {
			if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
				env.Missing(t, "needs the right to make a device: "+err.Error())
			}
		}, Request{}, v1alpha1.ReasonVolumeUnsafe, "not a regular file"},
		"a link in the temporary file's place": {func(t *testing.T, path string) {
			if err := os.Symlink("/etc/passwd", filepath.Join(filepath.Dir(path), newFile)); err != nil {
				t.Fatal(err)
			}
		}, Request{}, v1alpha1.ReasonVolumeNotWritable, newFile},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, diskName)
			if c.make != nil {
				c.make(t, path)
			}
			var before unix.Stat_t
			_ = unix.Lstat(path, &before)
			c.ask.Name = diskName
			a := ask(t, c.ask, dir, "")
			if c.reason == "" {
				if a.Result == nil || a.Result.Made || a.Result.Size != before.Size {
					t.Errorf("%+v, %+v", a.Result, a.Error)
				}
			} else if a.Error == nil || a.Error.Reason != c.reason || !strings.Contains(a.Error.Message, c.says) {
				t.Errorf("%+v, %+v; want %s: %s", a.Result, a.Error, c.reason, c.says)
			}
			var after unix.Stat_t
			_ = unix.Lstat(path, &after)
			before.Atim, after.Atim = unix.Timespec{}, unix.Timespec{}
			if before != after {
				t.Errorf("the file has changed: %+v, was %+v", after, before)
			}
		})
	}
}

func TestWithoutRights(t *testing.T) {
	const user = 64055
	for name, c := range map[string]struct {
		prepare func(dir, path string) error
		says    string // "" if it is taken
	}{
		"a file of another's":  {func(_, path string) error { return os.WriteFile(path, nil, 0o600) }, "disk.img belongs to 0:0 with mode 0600, and QEMU, which is 64055:64055"},
		"a file to read alone": {func(_, path string) error { return os.WriteFile(path, nil, 0o644) }, "`chgrp 64055` and `chmod g+rw`"},
		"a directory":          {func(dir, _ string) error { return os.Chmod(dir, 0o755) }, "the volume's directory belongs to 0:0 with mode 0755"},
		"a file of the group's": {func(_, path string) error {
			if err := os.WriteFile(path, make([]byte, mib), 0o660); err != nil {
				return err
			}
			if err := os.Chmod(path, 0o660); err != nil {
				return err
			}
			return os.Chown(path, 107, user) // as KubeVirt has it
		}, ""},
		"a directory of the group's": {func(dir, _ string) error {
			if err := os.Chown(dir, 0, user); err != nil {
				return err
			}
			return os.Chmod(dir, 0o2770)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.prepare(dir, filepath.Join(dir, diskName)); err != nil {
				env.Missing(t, "needs root: "+err.Error())
			}
			a, _ := child(t, Request{Name: diskName, Size: mib}, dir, "", user)
			switch {
			case c.says == "":
				if a.Result == nil || a.Result.Size != mib {
					t.Errorf("%+v, %+v", a.Result, a.Error)
				}
			case a.Error == nil || a.Error.Reason != v1alpha1.ReasonVolumeNotWritable || !strings.Contains(a.Error.Message, c.says):
				t.Errorf("%+v, %+v; want %s", a.Result, a.Error, c.says)
			}
		})
	}
}

func TestAnotherMakesItsDisk(t *testing.T) {
	dir := t.TempDir()
	f := open(t, write(t, filepath.Join(dir, newFile), nil), os.O_RDWR)
	if err := lock(f); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, Request{Name: diskName, Size: mib}, dir, ""); a.Error == nil || a.Error.Reason != v1alpha1.ReasonVolumeInUse {
		t.Errorf("%+v, %+v", a.Result, a.Error)
	}
	f.Close()
	if a := ask(t, Request{Name: diskName, Size: mib}, dir, ""); a.Result == nil || !a.Result.Made {
		t.Errorf("%+v, %+v", a.Result, a.Error)
	}
}

func TestAnotherWasFaster(t *testing.T) {
	dir := t.TempDir()
	w := &worker{Request: Request{Name: diskName}, dir: open(t, dir, unix.O_PATH)}
	f, err := w.create(newFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, filepath.Join(dir, diskName), []byte("another's"))
	if err := w.publish(f, newFile); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	if got := read(t, filepath.Join(dir, diskName)); string(got) != "another's" {
		t.Errorf("it has %q", got)
	}
}

func TestRoom(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		volume   unix.Statfs_t
		capacity int64
		want     int64
	}{
		"1 % of a large one":                {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib / 4096, Bfree: 0, Bavail: 0}, 0, 99 * gib},
		"8 MiB of a small one":              {unix.Statfs_t{Bsize: 4096, Blocks: 100 * mib / 4096}, 0, 92 * mib},
		"less than root's reserve":          {unix.Statfs_t{Bsize: 4096, Blocks: 100 * mib / 4096, Bfree: 50 * mib / 4096, Bavail: 45 * mib / 4096}, 0, 87 * mib},
		"fragments":                         {unix.Statfs_t{Bsize: mib, Frsize: 4096, Blocks: 100 * mib / 4096}, 0, 92 * mib},
		"the claim's":                       {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib / 4096}, 10*gib + 5, 10 * gib},
		"whole MiB":                         {unix.Statfs_t{Bsize: 512, Blocks: 2*100*1024 + 1023}, 0, 92 * mib},
		"less than nothing":                 {unix.Statfs_t{Bsize: 4096, Blocks: 1}, 0, 0},
		"a server that does not tell":       {unix.Statfs_t{Bsize: 4096}, 10 * gib, 10 * gib},
		"a server that tells anything":      {unix.Statfs_t{Bsize: 1 << 20, Blocks: 1<<64 - 1, Bfree: 5, Bavail: 9}, gib, gib},
		"a server whose reserve is nothing": {unix.Statfs_t{Bsize: 4096, Blocks: 100 * mib / 4096, Bfree: 1<<64 - 1}, 0, 0},
	} {
		if got := room(&c.volume, c.capacity); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
