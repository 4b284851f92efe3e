package shim_test

import (
	"bufio"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

func TestARealQEMUsConsole(t *testing.T) {
	const program = "qemu-system-x86_64"
	need(t, program)
	path := filepath.Join(t.TempDir(), "console")
	qemu := exec.Command(program, "-accel", "tcg", "-machine", "q35,graphics=off", "-m", "16", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=console,server=on,wait=off,path="+path, "-serial", "chardev:console",
		"-monitor", "stdio")
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	monitor, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = qemu.Process.Kill(), qemu.Wait() })

	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	_ = stdout.Close()
	a := c.take()
	var conn net.Conn
	eventually(t, "QEMU listens", func() bool {
		conn, err = net.Dial("unix", path)
		return err == nil
	})
	console, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	a.send(consoleOf("r1"), console)
	_ = console.Close()
	a.await("attached", func(s shimproto.State) bool { return s.InstanceID == "r1" })

	if _, err := monitor.Write([]byte("cont\n")); err != nil {
		t.Fatal(err)
	}
	_ = logs.SetReadDeadline(time.Now().Add(patience))
	lines := bufio.NewReader(logs)
	for text := ""; !strings.Contains(text, "SeaBIOS"); { // from its first byte, the firmware's
		if text, err = lines.ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", text, err)
		}
	}
	_ = qemu.Process.Kill()
	a.await("console closed", func(s shimproto.State) bool { return s.ConsoleClosed })
	a.send(shimproto.Exit{Code: 137, Reason: "QEMUFailed"})
	if code := c.code(); code != 137 {
		t.Errorf("exit code %d", code)
	}
}
