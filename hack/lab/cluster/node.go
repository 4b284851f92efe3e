package cluster

import (
	"crypto/x509/pkix"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/hack/lab/machine"
)

// nodePrivate is what a node has for itself: all that a kubelet, a runtime, a
// libvirtd and Berth's agent keep on a host.
var nodePrivate = []string{
	"/etc/cni", "/etc/libvirt",
	"/var/cache/libvirt", "/var/log",
	"/var/lib/berth", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/libvirt",
}

// kubeletPlugins is where a kubelet and storage drivers meet.
const kubeletPlugins = "/var/lib/kubelet/plugins/"

// kubeletSysctls are set by every kubelet, for the whole machine; and what it wants them to be.
var kubeletSysctls = map[string]string{
	"/proc/sys/vm/overcommit_memory":      "1",
	"/proc/sys/vm/panic_on_oom":           "0",
	"/proc/sys/kernel/panic":              "10",
	"/proc/sys/kernel/panic_on_oops":      "1",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
	"/proc/sys/kernel/keys/root_maxbytes": "25000000",
}

// shields are the files that a node sees otherwise than this machine: sysctls, and
// its own name, which libvirtd looks up at each start of a guest and must not wait for.
func shields(n Node) map[string]string {
	files := maps.Clone(kubeletSysctls)
	files["/etc/hosts"] = "127.0.0.1 localhost\n" + n.address() + " " + n.Name()
	return files
}

// nodeKeys makes the certificate by which a node's kubelet is known to the API, and it to others.
func nodeKeys(a *authority, n Node) error {
	user := "system:node:" + n.Name()
	if err := a.user(n.Name(), user, "system:nodes"); err != nil {
		return err
	}
	return a.issue(n.Name()+"-kubelet", pkix.Name{CommonName: user}, n.Name(), n.address())
}

// config is the path of a node's configuration file.
func (l Lab) config(n Node, file string) string {
	return filepath.Join(string(l.machine(n.Name())), "config", file)
}

// nodeData is what a node's configuration is filled with, where it is the same for nodes of both kinds.
func nodeData(n Node) map[string]any {
	return map[string]any{
		"Name": n.Name(), "Pods": n.pods(), "UUID": n.uuid(), "PodSubnet": podSubnet,
		"DNS": serviceDNS, "Domain": clusterDomain, "Registry": Registry, "Pause": pauseImage,
		"Systemd": n == SystemdHost,
	}
}

// nodeFiles writes the node's configuration to where the node will see it.
func (l Lab) nodeFiles(n Node) error {
	dir, k := l.machine(n.Name()), l.keys()
	config := func(file string) string { return l.config(n, file) }
	data := nodeData(n)
	maps.Copy(data, map[string]any{
		"CA": k.crt("ca"), "Crt": k.crt(n.Name() + "-kubelet"), "Key": k.key(n.Name() + "-kubelet"),
		"Kubeconfig": k.kubeconfig("proxy"), "CNI": l.Bin["cni"], "Runc": filepath.Join(l.Bin["runc"], "runc"),
		"SysResource": SysResource(), "ResolvConf": config("resolv.conf"), "Certs": config("certs.d"),
	})
	for file, path := range map[string]string{
		"kubelet.yaml":    config("kubelet.yaml"),
		"kube-proxy.yaml": config("kube-proxy.yaml"),
		"containerd.toml": config("containerd.toml"),
		"hosts.toml":      filepath.Join(config("certs.d"), Registry, "hosts.toml"),
		"cni.conflist":    dir.PrivatePath("/etc/cni/net.d/10-lab.conflist"),
		"libvirtd.conf":   dir.PrivatePath("/etc/libvirt/libvirtd.conf"),
		"qemu.conf":       dir.PrivatePath("/etc/libvirt/qemu.conf"),
	} {
		if err := render(file, path, data); err != nil {
			return err
		}
	}
	// Nothing but the cluster's own names resolves in a lab.
	return os.WriteFile(config("resolv.conf"), nil, 0o644)
}

// nodeSpec is the machine of a node.
func (l Lab) nodeSpec(n Node) machine.Spec {
	kubernetes := l.Bin["kubernetes"]
	path := strings.Join([]string{l.Bin["containerd"], l.Bin["runc"], os.Getenv("PATH")}, ":")
	containerd := "unix:/run/containerd/containerd.sock"
	return machine.Spec{
		Name:    n.Name(),
		Address: cidr(n.address()),
		Routes:  routes(n.Name()),
		Private: nodePrivate,
		Shields: shields(n),
		Services: []machine.Service{
			{Name: "virtlogd", Args: []string{"virtlogd"}},
			{Name: "libvirtd", Args: []string{"libvirtd"}, After: "unix:/run/libvirt/virtlogd-sock"},
			{Name: "containerd", Env: []string{"PATH=" + path}, Args: []string{
				filepath.Join(l.Bin["containerd"], "containerd"), "--config=" + l.config(n, "containerd.toml"),
			}},
			{Name: "kubelet", After: containerd, Args: []string{
				filepath.Join(kubernetes, "kubelet"),
				"--config=" + l.config(n, "kubelet.yaml"),
				"--kubeconfig=" + l.keys().kubeconfig(n.Name()),
				"--hostname-override=" + n.Name(),
				"--node-ip=" + n.address(),
			}},
			{Name: "kube-proxy", Args: []string{
				filepath.Join(kubernetes, "kube-proxy"),
				"--config=" + l.config(n, "kube-proxy.yaml"),
			}},
			{Name: "csi", Args: []string{l.Driver, kubeletPlugins + "csi.lab.berth.dev/csi.sock", l.volumes(), n.Name()}},
		},
	}
}
