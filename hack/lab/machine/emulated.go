package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PortName is the name of an emulated machine's tap on the switch, which its QEMU opens.
func PortName(machine string) string { return portName(machine) }

// startEmulated starts the QEMU of a machine that has a kernel of its own, and returns while that boots.
func startEmulated(dir Dir, spec Spec) error {
	if err := plugTap(spec.Name); err != nil {
		return err
	}
	log, err := os.OpenFile(dir.LogPath("qemu"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(spec.QEMU[0], spec.QEMU[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = string(dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the QEMU of %s: %w", spec.Name, err)
	}
	id, err := identify(cmd.Process.Pid)
	if err == nil {
		err = os.WriteFile(dir.pidPath(), []byte(id.String()), 0o644)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return cmd.Process.Release()
}

// plugTap makes an emulated machine's network card, as this host sees it, and connects it with the switch.
func plugTap(machine string) error {
	if err := unplug(machine); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: portName(machine)}, Mode: netlink.TUNTAP_MODE_TAP}
	err = netlink.LinkAdd(tap)
	if err == nil {
		err = netlink.LinkSetMaster(tap, bridge)
	}
	if err == nil {
		err = netlink.LinkSetUp(tap)
	}
	if err != nil {
		return fmt.Errorf("plugging %s into the switch: %w", machine, err)
	}
	return nil
}

// execEmulated replaces this process by a command inside an emulated machine, by way of its SSH server.
func execEmulated(spec Spec, args []string) error {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return err
	}
	_, err = unix.IoctlGetTermios(0, unix.TCGETS)
	return syscall.Exec(ssh, sshCommand(spec, args, err == nil), os.Environ())
}

func sshCommand(spec Spec, args []string, terminal bool) []string {
	address, _, _ := strings.Cut(spec.Address, "/")
	argv := []string{"ssh", "-i", spec.SSHKey}
	// Its host key is made with its image, and nobody else is on the switch.
	for _, option := range []string{"StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes", "ServerAliveInterval=10"} {
		argv = append(argv, "-o", option)
	}
	if terminal {
		argv = append(argv, "-t")
	}
	argv = append(argv, "root@"+address, "--")
	for _, arg := range args { // the other side has a shell read them
		argv = append(argv, "'"+strings.ReplaceAll(arg, "'", `'\''`)+"'")
	}
	return argv
}

// MakeSSHKey makes the key that opens an emulated machine, unless it is there.
func MakeSSHKey(path string) error {
	if exists(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path).CombinedOutput()
	if err != nil {
		return errors.New("making an SSH key: " + strings.TrimSpace(string(out)))
	}
	return nil
}
