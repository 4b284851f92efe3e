package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-dev/berth/hack/lab/machine"
)

// systemdHostTimeout bounds the way from power-on to a ready node: a whole system boots, under emulation.
const systemdHostTimeout = 6 * time.Minute

// kernelLine is the emulated host's. It guards against nobody, and has a name for its network card that is known.
const kernelLine = "root=/dev/vda rw console=ttyS0 no_timer_check mitigations=off net.ifnames=0"

// HasSystemdHost tells whether the lab has a host with systemd and cgroup v2, running or not.
func (l Lab) HasSystemdHost() bool { return exists(string(l.machine(SystemdHost.Name()))) }

// SystemdHostUp adds a host with systemd and cgroup v2, if it is not up: a system made by Cache.SystemdHost, emulated unless
// kvm, which joins the cluster as a node of its own.
func (l Lab) SystemdHostUp(system string, kvm bool) error {
	name := SystemdHost.Name()
	if l.machine(control).Pid() == 0 {
		return errors.New("no lab is up: run `make lab-up` first")
	}
	made := filepath.Join(string(l.machine(name)), "system")
	if raw, err := os.ReadFile(made); l.HasSystemdHost() && (err != nil || string(raw) != system) {
		if err := l.SystemdHostDown(); err != nil { // it is made of another one
			return err
		}
	}
	ca, err := openAuthority(l.keys())
	if err != nil {
		return err
	}
	if err := errors.Join(nodeKeys(ca, SystemdHost), machine.MakeSSHKey(l.sshKey())); err != nil {
		return err
	}
	if l.machine(name).Pid() == 0 {
		if err := l.systemdHostDisks(system); err != nil {
			return err
		}
	}
	if err := os.WriteFile(made, []byte(system), 0o644); err != nil {
		return err
	}
	if err := l.start(l.systemdHostSpec(system, kvm)); err != nil {
		return err
	}
	return l.waitFor(systemdHostTimeout, "node "+name, name+"/console", func() error {
		if l.machine(name).Pid() == 0 {
			return fmt.Errorf("its QEMU has ended, see %s", l.machine(name).LogPath("qemu"))
		}
		return l.kubectl(nil, "wait", "--for=condition=Ready", "--timeout=5s", "node/"+name)
	})
}

// SystemdHostDown removes that host, and its node.
func (l Lab) SystemdHostDown() error {
	dir := l.machine(SystemdHost.Name())
	if err := machine.Stop(dir); err != nil {
		return err
	}
	if err := l.kubectl(nil, "delete", "node", SystemdHost.Name(), "--ignore-not-found"); err != nil {
		return err
	}
	return os.RemoveAll(string(dir))
}

func (l Lab) sshKey() string { return filepath.Join(string(l.keys()), "ssh") }

// systemdHostFiles writes the host's configuration into a folder that it sees as /lab.
func systemdHostFiles(folder string) error {
	data := nodeData(SystemdHost)
	maps.Copy(data, map[string]any{
		"Address": cidr(SystemdHost.address()), "IP": SystemdHost.address(), "Routes": routes(SystemdHost.Name()),
		"CA": "/lab/ca.crt", "Crt": "/lab/kubelet.crt", "Key": "/lab/kubelet.key", "Kubeconfig": "/lab/proxy.kubeconfig",
		"CNI": "/lab/bin", "Runc": "/lab/bin/runc", "SysResource": true, "ResolvConf": "/lab/resolv.conf", "Certs": "/lab/certs.d",
	})
	for file, path := range map[string]string{
		"join": "join", "env": "env", "kubelet.yaml": "kubelet.yaml", "kube-proxy.yaml": "kube-proxy.yaml", "containerd.toml": "containerd.toml",
		"cni.conflist": "net.d/10-lab.conflist", "hosts.toml": "certs.d/" + Registry + "/hosts.toml",
	} {
		if err := render(file, filepath.Join(folder, path), data); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(folder, "resolv.conf"), nil, 0o644)
}

// systemdHostDisks makes the host's own disk, unless it has one, and the one with all that is the lab's: binaries, keys,
// configuration.
func (l Lab) systemdHostDisks(system string) error {
	dir, k, name := string(l.machine(SystemdHost.Name())), l.keys(), SystemdHost.Name()
	config := filepath.Join(dir, "config")
	if err := systemdHostFiles(config); err != nil {
		return err
	}
	grafts := []string{
		"/=" + config, "ca.crt=" + k.crt("ca"), "kubelet.crt=" + k.crt(name+"-kubelet"), "kubelet.key=" + k.key(name+"-kubelet"),
		"kubelet.kubeconfig=" + k.kubeconfig(name), "proxy.kubeconfig=" + k.kubeconfig("proxy"),
		"authorized_keys=" + l.sshKey() + ".pub",
	}
	for component, programs := range map[string]string{
		"kubernetes": "kubelet kube-proxy", "containerd": "containerd containerd-shim-runc-v2 ctr", "runc": "runc", "cni": "bridge host-local loopback",
	} {
		for program := range strings.FieldsSeq(programs) {
			grafts = append(grafts, "bin/"+program+"="+filepath.Join(l.Bin[component], program))
		}
	}
	if err := l.tool(append([]string{"genisoimage", "-quiet", "-r", "-l", "-allow-multidot", "-o", filepath.Join(dir, "lab.iso"), "-graft-points"}, grafts...)...); err != nil {
		return err
	}
	disk := filepath.Join(dir, "disk.qcow2")
	if exists(disk) {
		return nil
	}
	return l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(system, "disk.qcow2"), "-F", "qcow2", disk)
}

// tool runs a program of this machine.
func (l Lab) tool(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// systemdHostSpec is the machine of that host.
func (l Lab) systemdHostSpec(system string, kvm bool) machine.Spec {
	name := SystemdHost.Name()
	dir := l.machine(name)
	// Neither five levels of pages, which cost time, nor a KVM in emulation.
	accel, cpu := "tcg,thread=multi", "max,la57=off,svm=off"
	if kvm {
		accel, cpu = "kvm", "host"
	}
	return machine.Spec{
		Name: name, Address: cidr(SystemdHost.address()), SSHKey: l.sshKey(),
		QEMU: []string{
			"qemu-system-x86_64", "-name", "berth-lab-" + name, "-uuid", SystemdHost.uuid(), "-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "3G",
			"-nodefaults", "-display", "none", "-serial", "file:" + dir.LogPath("console"),
			"-kernel", filepath.Join(system, "vmlinuz"), "-initrd", filepath.Join(system, "initrd"), "-append", kernelLine,
			"-drive", "if=virtio,format=qcow2,file=disk.qcow2", "-drive", "if=virtio,format=raw,readonly=on,file=lab.iso",
			"-netdev", "tap,id=lab,ifname=" + machine.PortName(name) + ",script=no,downscript=no",
			"-device", "virtio-net-pci,netdev=lab,mac=52:54:00:97:00:01", "-device", "virtio-rng-pci",
		},
	}
}
