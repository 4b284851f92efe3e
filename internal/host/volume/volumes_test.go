package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/namespace"
	"github.com/berth-dev/berth/test/env"
)

const (
	uidA  = "00000000-0000-4000-8000-00000000000a"
	uidB  = "00000000-0000-4000-8000-00000000000b"
	userA = 1879048201
	userB = 1879048202
	group = 1879113728
)

var guestA, guestB = Guest{UID: uidA, User: userA, Group: group}, Guest{UID: uidB, User: userB, Group: group}

// rig is a host: a mount namespace with shared mounts, in which "libvirtd" and all that it starts are.
type rig struct {
	t    *testing.T
	dir  string // on a mount of the namespace alone
	ns   *os.File
	pid  int
	down bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: it mounts")
	}
	r := &rig{t: t, dir: t.TempDir()}
	if err := os.Chmod(filepath.Dir(r.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	r.pid = r.cat(nil, syscall.CLONE_NEWNS)
	var err error
	if r.ns, err = openNamespace(r.pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.ns.Close() })
	r.in(r.ns, func() error {
		return errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
			unix.Mount("run", r.dir, "tmpfs", unix.MS_NODEV, "mode=755"))
	})
	return r
}

// cat starts a process that waits, in a mount namespace of its own below that of ns.
func (r *rig) cat(ns *os.File, flags uintptr) (pid int) {
	r.t.Helper()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if ns == nil {
		err = cmd.Start()
	} else {
		_, err = namespace.In(context.Background(), ns, unix.CLONE_NEWNS, func() (int, error) { return 0, cmd.Start() })
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// in does something in a mount namespace.
func (r *rig) in(ns *os.File, do func() error) {
	r.t.Helper()
	if _, err := namespace.In(context.Background(), ns, unix.CLONE_NEWNS, func() (struct{}, error) { return struct{}{}, do() }); err != nil {
		r.t.Fatal(err)
	}
}

// volumes are those of an agent that has just started.
func (r *rig) volumes() *Volumes {
	return New(filepath.Join(r.dir, "berth/volumes"), func(context.Context) (int, error) {
		if r.down {
			return 0, errors.New("libvirtd is away")
		}
		return r.pid, nil
	})
}

// fileSystem mounts a volume on the host, as kubelet does.
func (r *rig) fileSystem(name string) (path string) {
	path = filepath.Join(r.dir, name)
	r.in(r.ns, func() error {
		return errors.Join(os.Mkdir(path, 0o755), unix.Mount("claim", path, "tmpfs", 0, "size=1m,mode=755"), os.Chown(path, 0, group))
	})
	return path
}

// berth starts a shim in a mount namespace of its own, in which setup puts what is at path.
func (r *rig) berth(setup func(path string) error) (pid int, path string) {
	pid = r.cat(r.ns, syscall.CLONE_NEWNS)
	ns, err := openNamespace(pid)
	if err != nil {
		r.t.Fatal(err)
	}
	defer ns.Close()
	path = filepath.Join(r.dir, "disks/data")
	r.in(ns, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := errors.Join(unix.Mount("root", r.dir, "tmpfs", 0, ""), os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
			return err
		}
		return setup(path)
	})
	return pid, path
}

// mounting binds a volume of the host into a berth. It has to be opened before the berth has its own root.
func (r *rig) mounting(volume string) func(string) error {
	var clone int
	r.in(r.ns, func() (err error) {
		clone, err = unix.OpenTree(unix.AT_FDCWD, volume, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	return func(path string) error {
		defer unix.Close(clone)
		return errors.Join(os.Mkdir(path, 0o755), unix.MoveMount(clone, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
}

func (r *rig) attach(v *Volumes, g Guest, vol Volume, setup func(string) error) error {
	r.t.Helper()
	shim, path := r.berth(setup)
	vol.Path = path
	return v.Attach(r.t.Context(), g, shim, vol)
}

// qemu starts a program of a user as libvirt does: in a namespace of its own that follows the host's.
func (r *rig) qemu(user uint32, script string) (said string, stop func()) {
	r.t.Helper()
	cmd := exec.Command("sh", "-c", "read go; "+script+"; echo; echo done; read stop")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Credential: &syscall.Credential{Uid: user, Gid: group}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	r.in(r.ns, cmd.Start)
	ns, err := openNamespace(cmd.Process.Pid)
	if err != nil {
		r.t.Fatal(err)
	}
	defer ns.Close()
	r.in(ns, func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "") })
	fmt.Fprintln(stdin)
	lines := bufio.NewReader(stdout)
	for line := ""; line != "done\n" && err == nil; line, err = lines.ReadString('\n') {
		said += line
	}
	if err != nil {
		r.t.Fatalf("after %q: %v", said, err)
	}
	return strings.TrimSuffix(said, "\n"), func() { stdin.Close(); _, _ = io.Copy(io.Discard, stdout); _ = cmd.Wait() }
}

func (r *rig) expectNothing(v *Volumes) {
	r.t.Helper()
	uids, err := v.List()
	if err != nil || len(uids) > 0 {
		r.t.Errorf("attached are %v, %v", uids, err)
	}
	r.in(r.ns, func() error {
		table, err := os.ReadFile("/proc/thread-self/mountinfo")
		if strings.Contains(string(table), v.dir+"/") {
			r.t.Errorf("mounts are left:\n%s", table)
		}
		return err
	})
}

func expectReason(t *testing.T, err error, want string, words ...string) {
	t.Helper()
	if string(fault.ReasonOf(err)) != want {
		t.Errorf("got %v, want %s", err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestAFileSystem(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	data := r.fileSystem("data")
	r.in(r.ns, func() error {
		return errors.Join(os.WriteFile(filepath.Join(data, "disk.img"), []byte("content"), 0o644), os.Symlink("/etc/hostname", filepath.Join(data, "link")),
			os.Mkdir(filepath.Join(data, "below"), 0o755), unix.Mount("below", filepath.Join(data, "below"), "tmpfs", 0, ""))
	})
	vol := Volume{Disk: "data", Claim: "claim-1"}
	shim, path := r.berth(r.mounting(data))
	vol.Path = path
	for range 2 { // again, as another agent
		if err := v.Attach(t.Context(), guestA, shim, vol); err != nil {
			t.Fatal(err)
		}
		v = r.volumes()
	}
	want := Attached{Volume: vol, File: filepath.Join(v.dir, uidA, "data/disk.img")}
	got, err := v.Attached(uidA)
	if diff := cmp.Diff([]Attached{want}, got); diff != "" || err != nil {
		t.Errorf("attached (-want +got):\n%s%v", diff, err)
	}
	if err := v.RecordMade(uidA, "data", Made{Size: 1, Target: 3, Capacity: 2, Seed: "sha256:1"}); err != nil {
		t.Fatal(err)
	}
	if err := v.Attach(t.Context(), guestA, shim, vol); err != nil {
		t.Fatal(err)
	}
	want.Made, want.Size, want.Target, want.Capacity, want.Seed = true, 1, 3, 2, "sha256:1"
	if got, err := v.Attached(uidA); cmp.Diff([]Attached{want}, got) != "" || err != nil {
		t.Errorf("attached is %+v, %v", got, err)
	}

	dir := filepath.Join(v.dir, uidA, "data")
	said, stop := r.qemu(userA, "exec 3<"+want.File+"; cat "+want.File+"; echo; cat "+dir+"/link; ls "+filepath.Dir(dir)+" "+v.dir)
	if !strings.HasPrefix(said, "content\n") || strings.Count(said, "ermission denied") != 2 || !strings.Contains(said, "levels of symbolic links") {
		t.Errorf("its QEMU sees %s", said)
	}
	other, stopOther := r.qemu(userB, "cat "+want.File)
	stopOther()
	if !strings.Contains(other, "ermission denied") {
		t.Errorf("another guest's QEMU sees %s", other)
	}
	r.in(r.ns, func() error {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return err
		}
		if flags := int64(unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC); s.Flags&flags != flags || s.Flags&unix.ST_RDONLY != 0 {
			t.Errorf("it is mounted with flags %#x", s.Flags)
		}
		if err := unix.Statfs(v.dir, &s); err != nil {
			return err
		}
		if flags := int64(unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC); s.Flags&flags != unix.ST_NOSUID|unix.ST_NOEXEC {
			t.Errorf("the directory is mounted with flags %#x", s.Flags)
		}
		return nil
	})

	expectReason(t, v.Detach(t.Context(), uidA), "VolumeInUse", "data", "QEMU")
	if got, err := v.Attached(uidA); len(got) != 1 || err != nil {
		t.Errorf("of what is in use is left %v, %v", got, err)
	}
	stop()
	for range 2 {
		if err := v.Detach(t.Context(), uidA); err != nil {
			t.Error(err)
		}
	}
	r.expectNothing(v)
	r.in(r.ns, func() error {
		content, err := os.ReadFile(filepath.Join(data, "disk.img"))
		if string(content) != "content" {
			t.Errorf("on the volume is %q", content)
		}
		return err
	})
}

func TestAReadOnlyFileSystem(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	data := r.fileSystem("data")
	vol := Volume{Disk: "data"}
	for _, vol.ReadOnly = range []bool{false, true} { // the second replaces the first
		if err := r.attach(v, guestA, vol, r.mounting(data)); err != nil {
			t.Fatal(err)
		}
	}
	r.in(r.ns, func() error {
		if err := os.WriteFile(filepath.Join(v.dir, uidA, "data/x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("it is written: %v", err)
		}
		return os.WriteFile(filepath.Join(data, "x"), nil, 0o600) // the host's own stays as it is
	})
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Error(err)
	}
	r.expectNothing(v)
}

// loop makes a loop device.
func loop(t *testing.T) (path string, rdev uint64) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		env.Missing(t, "needs a loop device: "+string(out))
	}
	path = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("detaching %s: %s", path, out)
		}
	})
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return path, s.Rdev
}

func nodeOf(rdev uint64) func(string) error {
	return func(path string) error { return unix.Mknod(path, unix.S_IFBLK|0o660, int(rdev)) }
}

func TestADevice(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	path, rdev := loop(t)
	if err := os.WriteFile(path, []byte("content"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.attach(v, guestA, Volume{Disk: "data", Block: true}, nodeOf(rdev)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := v.Attached(uidA)
	if err != nil || len(got) != 1 || got[0].File != filepath.Join(v.dir, uidA, "data.raw") {
		t.Fatalf("attached is %+v, %v", got, err)
	}
	said, stop := r.qemu(userA, "head -c7 "+got[0].File+" && printf x >>"+got[0].File)
	stop()
	if said != "content" {
		t.Errorf("its QEMU reads %q", said)
	}
	said, stop = r.qemu(userB, "head -c7 "+got[0].File)
	stop()
	if !strings.Contains(said, "ermission denied") {
		t.Errorf("another guest's QEMU reads %q", said)
	}
	// Another device in its place.
	_, second := loop(t)
	if err := r.attach(v, guestA, Volume{Disk: "data", Block: true}, nodeOf(second)); err != nil {
		t.Fatal(err)
	}
	r.in(r.ns, func() error {
		var s unix.Stat_t
		err := unix.Lstat(got[0].File, &s)
		if s.Rdev != second || s.Mode != unix.S_IFBLK|0o600 || s.Uid != userA {
			t.Errorf("the node is of device %d with mode %o of user %d", s.Rdev, s.Mode, s.Uid)
		}
		return err
	})
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Error(err)
	}
	r.expectNothing(v)
}

func TestWhatIsNoVolume(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	data := r.fileSystem("data")
	_, rdev := loop(t)
	directory := func(path string) error { return os.Mkdir(path, 0o755) }
	for _, tt := range []struct {
		name  string
		block bool
		setup func(string) error
		words []string
	}{
		{"nothing", false, func(string) error { return nil }, []string{"no such file"}},
		{"a directory", false, directory, []string{"a directory in which nothing is mounted", "want a mount"}},
		{"a link to a mount", false, func(path string) error {
			return errors.Join(r.mounting(data)(path+"-real"), os.Symlink(path+"-real", path))
		}, []string{"something else"}},
		{"below a link", false, func(path string) error {
			dir := filepath.Dir(path)
			return errors.Join(os.Rename(dir, dir+"-real"), os.Symlink(dir+"-real", dir), r.mounting(data)(path))
		}, []string{"symbolic links"}},
		{"a directory of a mount", false, func(path string) error {
			return errors.Join(unix.Mount("x", filepath.Dir(path), "tmpfs", 0, ""), os.Mkdir(path, 0o755))
		}, []string{"nothing is mounted"}},
		{"a file that is mounted", false, func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), unix.Mount(path, path, "", unix.MS_BIND, ""))
		}, []string{"something else"}},
		{"a device, not a file system", false, nodeOf(rdev), []string{"something else"}},
		{"a file system, not a device", true, directory, []string{"want a block device"}},
		{"a link to a device", true, func(path string) error {
			return errors.Join(nodeOf(rdev)(path+"-real"), os.Symlink(path+"-real", path))
		}, []string{"something else"}},
		{"a character device", true, func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))) }, []string{"something else"}},
		{"a FIFO", true, func(path string) error { return unix.Mkfifo(path, 0o666) }, []string{"something else"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			expectReason(t, r.attach(v, guestA, Volume{Disk: "data", Block: tt.block}, tt.setup), "VolumeMissing", tt.words...)
			r.expectNothing(v)
		})
	}
	expectReason(t, v.Attach(t.Context(), guestA, r.cat(r.ns, 0), Volume{Disk: "data", Path: data}), "VolumeMissing", "namespace of the host")
	if err := v.Attach(t.Context(), Guest{UID: "../x"}, 1, Volume{Disk: "data"}); err == nil {
		t.Error("a path is a UID")
	}
	if err := v.Attach(t.Context(), guestA, 1, Volume{Disk: "../x"}); err == nil {
		t.Error("a path is a disk")
	}
}

func TestTheSecondLock(t *testing.T) {
	fileSystem := identity{Major: 8, Minor: 1, Inode: 2}
	for _, tt := range []struct {
		name string
		a, b record
		want bool
	}{
		{"a file system", newRecord(Volume{}, fileSystem), newRecord(Volume{}, fileSystem), true},
		{"a shared one", newRecord(Volume{Shared: true}, fileSystem), newRecord(Volume{Shared: true}, fileSystem), false},
		{"a half shared one", newRecord(Volume{Shared: true}, fileSystem), newRecord(Volume{}, fileSystem), true},
		{"one that both only read", newRecord(Volume{ReadOnly: true}, fileSystem), newRecord(Volume{ReadOnly: true}, fileSystem), false},
		{"one that one of two only reads", newRecord(Volume{ReadOnly: true}, fileSystem), newRecord(Volume{}, fileSystem), true},
		{"two directories of one", newRecord(Volume{}, fileSystem), newRecord(Volume{}, identity{Major: 8, Minor: 1, Inode: 3}), false},
		{"two file systems", newRecord(Volume{}, fileSystem), newRecord(Volume{}, identity{Major: 8, Minor: 2, Inode: 2}), false},
		{"a device", newRecord(Volume{Block: true}, identity{Major: 7, Minor: 1}), newRecord(Volume{Block: true}, identity{Major: 7, Minor: 1}), true},
		{"two devices", newRecord(Volume{Block: true}, identity{Major: 7, Minor: 1}), newRecord(Volume{Block: true}, identity{Major: 7, Minor: 2}), false},
		{"a device and its file system", newRecord(Volume{Block: true, Shared: true}, identity{Major: 8, Minor: 1}), newRecord(Volume{Shared: true}, fileSystem), true},
	} {
		if tt.a.conflicts(tt.b) != tt.want || tt.b.conflicts(tt.a) != tt.want {
			t.Errorf("%s: conflict is not %v", tt.name, tt.want)
		}
	}

	r := newRig(t)
	v := r.volumes()
	data := r.fileSystem("data")
	if err := r.attach(v, guestA, Volume{Disk: "data"}, r.mounting(data)); err != nil {
		t.Fatal(err)
	}
	expectReason(t, r.attach(r.volumes(), guestB, Volume{Disk: "mine"}, r.mounting(data)), "VolumeInUse", uidA, "disk data")
	expectReason(t, r.attach(v, guestA, Volume{Disk: "twice"}, r.mounting(data)), "VolumeInUse", uidA)
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Fatal(err)
	}
	for _, g := range []Guest{guestA, guestB} {
		if err := r.attach(v, g, Volume{Disk: "data", Shared: true}, r.mounting(data)); err != nil {
			t.Errorf("sharing: %v", err)
		}
	}
	uids, err := v.List()
	if !slices.Equal(uids, []string{uidA, uidB}) || err != nil {
		t.Errorf("attached are %v, %v", uids, err)
	}
	for _, uid := range uids {
		if err := v.Detach(t.Context(), uid); err != nil {
			t.Error(err)
		}
	}
	r.expectNothing(v)
}

func TestForWorker(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	_, rdev := loop(t)
	if _, _, err := v.OpenForWorker(t.Context(), uidA, "data"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not attached: %v", err)
	}
	if err := v.RecordMade(uidA, "data", Made{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not attached: %v", err)
	}
	data := r.fileSystem("data")
	if err := r.attach(v, guestA, Volume{Disk: "data"}, r.mounting(data)); err != nil {
		t.Fatal(err)
	}
	if err := r.attach(v, guestA, Volume{Disk: "log", Block: true}, nodeOf(rdev)); err != nil {
		t.Fatal(err)
	}
	for disk, want := range map[string]struct {
		name string
		kind uint32
	}{"data": {"disk.img", unix.S_IFREG}, "log": {"log.raw", unix.S_IFBLK}} {
		r.in(r.ns, func() error { return os.WriteFile(filepath.Join(data, "disk.img"), nil, 0o600) })
		dir, name, err := v.OpenForWorker(t.Context(), uidA, disk)
		if err != nil || name != want.name {
			t.Fatalf("%s: %q, %v", disk, name, err)
		}
		fd := int(dir.Fd())
		var s, up unix.Stat_t
		if err := unix.Fstatat(fd, name, &s, unix.AT_SYMLINK_NOFOLLOW); err != nil || s.Mode&unix.S_IFMT != want.kind {
			t.Errorf("%s: mode %o, %v", disk, s.Mode, err)
		}
		err = errors.Join(unix.Fstatat(fd, "", &s, unix.AT_EMPTY_PATH), unix.Fstatat(fd, "../../..", &up, 0))
		if err != nil || s.Ino != up.Ino || s.Dev != up.Dev {
			t.Errorf("%s: the directory has a parent, %v", disk, err)
		}
		dir.Close()
	}
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Error(err)
	}
	r.expectNothing(v)
}

// TestCutAnywhere leaves what is left where an Attach or a Detach is cut, and does both again.
func TestCutAnywhere(t *testing.T) {
	r := newRig(t)
	_, rdev := loop(t)
	data := r.fileSystem("data")
	for _, block := range []bool{false, true} {
		setup := func() func(string) error {
			if block {
				return nodeOf(rdev)
			}
			return r.mounting(data)
		}
		vol := Volume{Disk: "data", Block: block}
		for name, cut := range map[string]func(v *Volumes) error{
			"nothing but the guest's directory": func(v *Volumes) error { return os.Mkdir(v.guestDir(uidA), 0o700) },
			"half a record": func(v *Volumes) error {
				return errors.Join(makeGuestDir(v.guestDir(uidA), userA), os.WriteFile(v.recordFile(uidA, "data")+newSuffix, []byte("{"), 0o600))
			},
			"a record": func(v *Volumes) error {
				return errors.Join(makeGuestDir(v.guestDir(uidA), userA), v.writeRecord(uidA, newRecord(vol, identity{Major: 1})))
			},
			"a record and a mount point": func(v *Volumes) error {
				return errors.Join(makeGuestDir(v.guestDir(uidA), userA), v.writeRecord(uidA, newRecord(vol, identity{Major: 1})), os.Mkdir(v.mountPoint(uidA, "data"), 0o700))
			},
			"half a node": func(v *Volumes) error {
				return errors.Join(makeGuestDir(v.guestDir(uidA), userA), v.writeRecord(uidA, newRecord(vol, identity{Major: 1})),
					unix.Mknod(v.node(uidA, "data")+newSuffix, unix.S_IFBLK, 0))
			},
			"a mount that was undone": func(v *Volumes) error { return v.unmount(uidA, "data") },
		} {
			for _, then := range []string{"attach", "detach"} {
				v := r.volumes()
				// The tmpfs is there, and for what is cut in Detach a whole volume.
				if err := r.attach(v, guestA, vol, setup()); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(name, "undone") {
					if err := v.Detach(t.Context(), uidA); err != nil {
						t.Fatal(err)
					}
				}
				r.in(r.ns, func() error { return cut(v) })
				if got, err := v.Attached(uidA); err != nil || len(got) > 0 && !(block && strings.Contains(name, "undone")) {
					t.Errorf("%s: attached is %+v, %v", name, got, err)
				}
				if then == "attach" {
					if err := r.attach(r.volumes(), guestA, vol, setup()); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					if got, err := v.Attached(uidA); err != nil || len(got) != 1 {
						t.Errorf("%s: attached is %+v, %v", name, got, err)
					}
				}
				if err := v.Detach(t.Context(), uidA); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				r.expectNothing(v)
			}
		}
	}
}

func TestLibvirtdIsAway(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	if err := v.Detach(t.Context(), uidA); err != nil { // no directory yet, as after a boot
		t.Error(err)
	}
	if err := r.attach(v, guestA, Volume{Disk: "data"}, r.mounting(r.fileSystem("data"))); err != nil {
		t.Fatal(err)
	}
	r.down = true
	if _, err := r.volumes().Attached(uidA); err == nil {
		t.Error("an agent that never saw libvirtd knows what is attached")
	}
	if got, err := v.Attached(uidA); len(got) != 1 || err != nil {
		t.Errorf("attached is %v, %v", got, err)
	}
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Error(err)
	}
	r.down = false
	r.expectNothing(v)
}

// TestAServerThatHangs: a file system of FUSE whose server does not answer.
func TestAServerThatHangs(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		env.Missing(t, "needs /dev/fuse: "+err.Error())
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)
	if err := r.attach(v, guestA, Volume{Disk: "data"}, func(path string) error {
		return errors.Join(os.Mkdir(path, 0o755), unix.Mount("fuse", path, "fuse", 0, options))
	}); err != nil {
		t.Error(err) // a root that is in the cache is asked for nothing
	}
	// One below it, which is not.
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("too late")
	shim, path := r.berth(func(path string) error {
		return unix.Mount("fuse", filepath.Dir(path), "fuse", 0, options)
	})
	asked := make(chan error, 1)
	go func() { asked <- v.Attach(ctx, guestB, shim, Volume{Disk: "data", Path: path}) }()
	env.Eventually(t, "a thread that waits for the server", func() bool {
		stacks, err := filepath.Glob("/proc/self/task/*/stack")
		return err == nil && slices.ContainsFunc(stacks, func(path string) bool {
			stack, _ := os.ReadFile(path) // of a thread that may have ended
			return strings.Contains(string(stack), "fuse_")
		})
	})
	cancel(cause)
	if err := <-asked; !errors.Is(err, cause) {
		t.Errorf("it ends with %v", err)
	}
	if got, err := v.Attached(uidA); len(got) != 1 || err != nil { // while the other one waits
		t.Errorf("attached is %v, %v", got, err)
	}
	if err := v.Detach(t.Context(), uidA); err != nil {
		t.Error(err)
	}
	_ = unix.Close(server) // which ends all that waits for it
	r.expectNothing(v)
}
