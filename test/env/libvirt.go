package env

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
)

// Libvirt is a libvirtd of a test's own: its sockets, state, logs and
// configuration are private, in a mount namespace of its own. It keeps its hands
// off the host's cgroups.
type Libvirt struct {
	// Dir is the test's own directory, which QEMU's user can enter. It is short enough for sockets.
	Dir string
	// Socket is where libvirtd listens.
	Socket string
	// UID and GID are good for QEMU to run as; GID may use /dev/kvm.
	UID, GID uint32

	t      testing.TB
	log    *os.File
	anchor *os.Process // virtlogd, which keeps the mount namespace
	daemon *os.Process
}

// qemuUID is nobody's on a usual system.
const qemuUID = 64100

// Libvirtd starts a libvirtd for the time of a test.
func Libvirtd(t testing.TB) *Libvirt {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "needs root, for a libvirtd of its own")
	}
	for _, program := range []string{"libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img", "unshare", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			Missing(t, "needs "+program+": install libvirt-daemon-system, qemu-system-x86, qemu-utils and util-linux")
		}
	}
	kvm, err := user.LookupGroup("kvm")
	if err != nil {
		Missing(t, "needs the group kvm, which QEMU's packages make")
	}
	gid, err := strconv.ParseUint(kvm.Gid, 10, 32)
	if err != nil {
		t.Fatalf("reading the group kvm: %v", err)
	}
	dir, err := os.MkdirTemp("", "lv")
	if err != nil {
		t.Fatalf("making libvirtd's directory: %v", err)
	}
	l := &Libvirt{Dir: dir, Socket: filepath.Join(dir, "run", "libvirt-sock"), UID: qemuUID, GID: uint32(gid), t: t}
	t.Cleanup(l.remove)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // QEMU's user enters it
		t.Fatal(err)
	}
	if l.log, err = os.Create(filepath.Join(dir, "daemons.log")); err != nil {
		t.Fatal(err)
	}
	l.anchor = l.start("unshare", "--mount", "--propagation", "private", "sh", "-ec", prepare, "prepare", dir, cacheDir(t), uuid.NewString())
	l.await(filepath.Join(dir, "run", "virtlogd-sock"))
	l.Start()
	return l
}

// cacheDir keeps what libvirtd finds out about QEMU, which takes it eight seconds.
func cacheDir(t testing.TB) string {
	base, err := os.UserCacheDir()
	if err != nil {
		return t.TempDir()
	}
	dir := filepath.Join(base, "berth", "test-libvirt")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // libvirtd's own mode
		t.Fatal(err)
	}
	return dir
}

// prepare makes libvirt's directories private and becomes virtlogd.
const prepare = `
dir=$1 cache=$2 uuid=$3
mkdir -p $dir/run $dir/lib $dir/log $dir/etc
cp -a /etc/libvirt/. $dir/etc/
rm -f $dir/etc/qemu/networks/autostart/* $dir/etc/qemu/autostart/*
echo "host_uuid = \"$uuid\"" >>$dir/etc/libvirtd.conf
echo 'cgroup_controllers = [ ]' >>$dir/etc/qemu.conf
mkdir -p /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind $dir/run /run/libvirt
mount --bind $dir/lib /var/lib/libvirt
mount --bind $dir/log /var/log/libvirt
mount --bind $cache /var/cache/libvirt
mount --bind $dir/etc /etc/libvirt
if [ -e /dev/kvm ]; then
	mknod $dir/kvm c 10 232
	chgrp kvm $dir/kvm
	chmod 660 $dir/kvm
	mount --bind $dir/kvm /dev/kvm
fi
exec virtlogd --pid-file $dir/virtlogd.pid
`

// Start starts libvirtd after Kill.
func (l *Libvirt) Start() {
	l.t.Helper()
	l.daemon = l.start("nsenter", "--mount", "--target", strconv.Itoa(l.anchor.Pid), "libvirtd", "--pid-file", filepath.Join(l.Dir, "libvirtd.pid"))
	l.await(l.Socket)
}

// Kill ends libvirtd without a chance to tidy up. Guests run on.
func (l *Libvirt) Kill() {
	l.t.Helper()
	l.Signal(syscall.SIGKILL)
	l.gone(l.daemon)
	if err := os.Remove(l.Socket); err != nil {
		l.t.Fatalf("removing libvirtd's socket: %v", err)
	}
}

// Signal sends libvirtd a signal, such as SIGSTOP.
func (l *Libvirt) Signal(s syscall.Signal) {
	l.t.Helper()
	if err := l.daemon.Signal(s); err != nil {
		l.t.Fatalf("sending libvirtd %v: %v", s, err)
	}
}

// Virsh runs virsh on this libvirtd, as an administrator might.
func (l *Libvirt) Virsh(args ...string) string {
	l.t.Helper()
	args = append([]string{"--connect", "qemu+unix:///system?socket=" + l.Socket}, args...)
	out, err := exec.CommandContext(l.t.Context(), "virsh", args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("virsh %s: %v: %s", strings.Join(args[2:], " "), err, out)
	}
	return string(out)
}

// start starts a daemon that dies with the test.
func (l *Libvirt) start(name string, args ...string) *os.Process {
	l.t.Helper()
	cmd := exec.Command(name, args...) // it ends in remove
	cmd.Stdout, cmd.Stderr = l.log, l.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// Pdeathsig means the thread: keep it for as long as the daemon runs.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its end is the test's doing
		}
	}()
	if err := <-started; err != nil {
		l.t.Fatalf("starting %s: %v", name, err)
	}
	return cmd.Process
}

// await waits until somebody listens at a socket.
func (l *Libvirt) await(socket string) {
	l.t.Helper()
	Eventually(l.t, "a daemon at "+socket, func() bool {
		conn, err := dialUnix(socket)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// gone waits until a daemon has ended and start has seen it.
func (l *Libvirt) gone(p *os.Process) {
	l.t.Helper()
	Eventually(l.t, "the end of a daemon", func() bool { return syscall.Kill(p.Pid, 0) != nil })
}

// remove ends the daemons and all QEMUs that are left, and removes the directory.
func (l *Libvirt) remove() {
	l.killGuests()
	for _, p := range []*os.Process{l.daemon, l.anchor} {
		if p != nil {
			_ = p.Kill() // it may have ended
			l.gone(p)
		}
	}
	if l.t.Failed() && l.log != nil {
		if out, err := os.ReadFile(l.log.Name()); err == nil {
			l.t.Logf("libvirtd:\n%s", out)
		}
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		l.t.Errorf("removing libvirtd's directory: %v", err)
	}
}

// SignalGuest sends a domain's QEMU a signal.
func (l *Libvirt) SignalGuest(domain string, s syscall.Signal) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.Dir, "run", "qemu", domain+".pid"))
	if err != nil {
		l.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Kill(pid, s); err != nil {
		l.t.Fatalf("sending %s %v: %v", domain, s, err)
	}
}

// killGuests kills what libvirtd's PID files name, if it is a QEMU of this directory's.
func (l *Libvirt) killGuests() {
	files, _ := filepath.Glob(filepath.Join(l.Dir, "run", "qemu", "*.pid"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(args, []byte(strings.TrimSuffix(filepath.Base(file), ".pid"))) && bytes.Contains(args, []byte("qemu")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
