package shim_test

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	hostconsole "github.com/berth-dev/berth/internal/host/console"
)

func TestARealQEMUsConsole(t *testing.T) {
	const program = "qemu-system-x86_64"
	need(t, program)
	consoles, err := hostconsole.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	qemu := exec.Command(program, "-accel", "tcg", "-machine", "q35,graphics=off", "-m", "16", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=console,server=on,wait=off,path="+consoles.Path("uid", hostconsole.Serial), "-serial", "chardev:console",
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
	var console *os.File
	eventually(t, "QEMU listens", func() bool {
		console, err = consoles.Connect(t.Context(), "uid", hostconsole.Serial)
		return err == nil
	})
	a.send(consoleOf("r1"), console)
	_ = console.Close()
	a.await("attached", func(s shimproto.State) bool { return s.InstanceID == "r1" })

	if _, err := monitor.Write([]byte("cont\n")); err != nil {
		t.Fatal(err)
	}
	_ = logs.SetReadDeadline(time.Now().Add(waitTimeout))
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
