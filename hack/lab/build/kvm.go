package build

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// kvmTimeout is ample for a kernel's first line, and short enough for a machine on which it never comes.
const kvmTimeout = 8 * time.Second

// KVM tells whether /dev/kvm really runs Linux: some virtual machines have the
// device, run firmware under it, and hang when a kernel enters 64-bit mode. The
// answer holds until the machine is started anew.
func (c *Cache) KVM() (bool, error) {
	if !exists("/dev/kvm") {
		c.Say("no /dev/kvm here: guests are emulated, slowly")
		return false, nil
	}
	kernel, err := c.kernelPackage()
	if err != nil {
		return false, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return false, err
	}
	dir, err := c.part("kvm", string(boot), func(dir string) error {
		works, err := kernelBoots(kernel)
		if works && err == nil {
			return os.WriteFile(filepath.Join(dir, "works"), nil, 0o644)
		}
		return err
	})
	if err != nil {
		return false, err
	}
	works := exists(filepath.Join(dir, "works"))
	if !works {
		c.Say("/dev/kvm answers but does not run Linux here: guests are emulated, slowly")
	}
	return works, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// kernelBoots starts Linux under KVM and waits for its first line.
func kernelBoots(kernel string) (bool, error) {
	vmlinuz, err := only(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), kvmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-m", "128", "-nodefaults", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", vmlinuz, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	works := false
	for lines := bufio.NewScanner(out); lines.Scan() && !works; {
		works = strings.Contains(lines.Text(), "Linux version")
	}
	cancel()
	_ = cmd.Wait() // killed
	return works, nil
}
