package env

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Act is what a test's guest does once it has printed BootText on its serial port.
type Act []byte

// The acts, in real-mode code for QEMU's q35.
var (
	Idle     = Act{}
	PowerOff = Act{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef} // PM1a_CNT: soft off
	Panic    = Act{0xba, 0x05, 0x05, 0xb0, 0x01, 0xee}       // pvpanic
	Reboot   = Act{0xb0, 0xfe, 0xe6, 0x64}                   // keyboard controller: reset
)

// BootText is what a test's guest prints.
const BootText = "berth: hello from the boot sector\r\n"

// BootDisk writes a raw disk of 1 MiB whose boot sector is a whole guest, for
// KVM and emulation alike, and a qcow2 layer over it, which belongs to uid and
// gid. It returns both paths.
func BootDisk(t testing.TB, dir string, act Act, uid, gid uint32) (raw, overlay string) {
	t.Helper()
	const text = 0x7c40
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, text & 0xff, text >> 8, // mov si, text
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz done
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
	}
	code = append(code, act...)
	code = append(code, 0xf4, 0xeb, 0xfd) // done: hlt, for ever
	disk := make([]byte, 1<<20)
	copy(disk, code)
	copy(disk[text-0x7c00:], BootText)
	disk[510], disk[511] = 0x55, 0xaa
	raw, overlay = dir+"/base.raw", dir+"/root.qcow2"
	if err := os.WriteFile(raw, disk, 0o644); err != nil { //nolint:gosec // QEMU's user reads it
		t.Fatalf("writing boot disk: %v", err)
	}
	makeDisk(t, overlay, uid, gid, "-b", raw, "-F", "raw")
	return raw, overlay
}

// EmptyDisk makes a qcow2 disk of 1 GiB that belongs to uid and gid.
func EmptyDisk(t testing.TB, path string, uid, gid uint32) {
	t.Helper()
	makeDisk(t, path, uid, gid)
}

// EmptyDiskLike makes a qcow2 disk as large as another one is for its guest.
func EmptyDiskLike(t testing.TB, path, like string, uid, gid uint32) {
	t.Helper()
	header, err := os.ReadFile(like)
	if err != nil || len(header) < 32 {
		t.Fatalf("reading %s: %d bytes, %v", like, len(header), err)
	}
	makeDisk(t, path, uid, gid, "-o", fmt.Sprintf("size=%d", binary.BigEndian.Uint64(header[24:])))
}

func makeDisk(t testing.TB, path string, uid, gid uint32, options ...string) {
	t.Helper()
	args := append([]string{"create", "-q", "-f", "qcow2"}, options...)
	args = append(args, path)
	if len(options) == 0 {
		args = append(args, "1G")
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("making disk: %v: %s", err, out)
	}
	if err := os.Chown(path, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
}

// Mkdir makes a directory that QEMU's user can enter.
func Mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
}

// patience is how long anything may take before a test gives up, on a machine that is busy with others.
const patience = 3 * time.Minute

// Eventually waits until a claim is true, patiently.
func Eventually(t testing.TB, what string, claim func() bool) {
	t.Helper()
	Within(t, patience, what, claim)
}

// Within waits until a claim is true, at most so long.
func Within(t testing.TB, limit time.Duration, what string, claim func() bool) {
	t.Helper()
	defer Slow(t, time.Now(), what)
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for began := time.Now(); !claim(); began = time.Now() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %v for %s", limit, what)
		case <-time.After(max(10*time.Millisecond, 2*time.Since(began))): // what is dear to ask takes no more than a third of a CPU
		}
	}
}

// Slow tells what a test has waited for, if that was long: where the time of a slow run went.
func Slow(t testing.TB, since time.Time, what string) {
	t.Helper()
	if long := time.Since(since); long > 30*time.Second {
		t.Logf("waited %v for %s", long.Round(time.Second), what)
	}
}

// Steadily holds that a claim stays true for so long.
func Steadily(t testing.TB, what string, long time.Duration, claim func() bool) {
	t.Helper()
	end := time.NewTimer(long)
	defer end.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if !claim() {
			t.Fatalf("%s did not last", what)
		}
		select {
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}

func dialUnix(path string) (net.Conn, error) { return net.DialTimeout("unix", path, time.Second) }
