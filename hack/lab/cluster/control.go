package cluster

import (
	"crypto/x509/pkix"
	"path/filepath"

	"github.com/berth-dev/berth/hack/lab/machine"
)

// controlKeys makes the certificates of the control plane and of its users. The API server's is also good for a proxy
// that a test serves on this host.
func controlKeys(a *authority) error {
	if err := a.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, controlAddress, hostAddress, serviceAPI, "127.0.0.1",
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+clusterDomain); err != nil {
		return err
	}
	if err := a.issue("apiserver-kubelet", pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}); err != nil {
		return err
	}
	if err := a.issue("service-account", pkix.Name{CommonName: "service-accounts"}); err != nil {
		return err
	}
	for _, u := range []struct {
		name, user string
		groups     []string
	}{
		{"admin", "admin", []string{"system:masters"}},
		{"controller-manager", "system:kube-controller-manager", nil},
		{"scheduler", "system:kube-scheduler", nil},
		{"proxy", "system:kube-proxy", nil},
	} {
		if err := a.user(u.name, u.user, u.groups...); err != nil {
			return err
		}
	}
	return nil
}

// driverSocket is where the CSI driver's part for all nodes listens, in the control machine.
const driverSocket = "/run/csi.sock"

// controlSpec is the machine of the control plane and of the registry.
func (l Lab) controlSpec() machine.Spec {
	k, kubernetes := l.keys(), l.Bin["kubernetes"]
	dir := string(l.machine(control))
	sidecar := func(name string, more ...string) machine.Service {
		return machine.Service{Name: name, After: "tcp:127.0.0.1:6443", Args: append([]string{
			filepath.Join(l.Bin["csi"], name),
			"--csi-address=" + driverSocket,
			"--kubeconfig=" + k.kubeconfig("admin"),
			"--kube-api-qps=100", "--kube-api-burst=200",
		}, more...)}
	}
	return machine.Spec{
		Name:    control,
		Address: cidr(controlAddress),
		Routes:  routes(control),
		Private: []string{"/var/log"},
		Services: []machine.Service{
			{Name: "registry", Args: []string{l.Self, RegistryVerb, l.registryDir(), ":5000"}},
			{Name: "etcd", Args: []string{
				filepath.Join(l.Bin["etcd"], "etcd"), "--data-dir=" + filepath.Join(dir, "etcd"),
				"--unsafe-no-fsync", // a lab's power never fails
				"--listen-peer-urls=http://127.0.0.1:2380",
			}},
			{Name: "apiserver", After: "tcp:127.0.0.1:2379", Args: []string{
				filepath.Join(kubernetes, "kube-apiserver"),
				"--advertise-address=" + controlAddress,
				"--etcd-servers=http://127.0.0.1:2379",
				"--service-cluster-ip-range=" + serviceSubnet,
				"--client-ca-file=" + k.crt("ca"),
				"--tls-cert-file=" + k.crt("apiserver"),
				"--tls-private-key-file=" + k.key("apiserver"),
				"--kubelet-certificate-authority=" + k.crt("ca"),
				"--kubelet-client-certificate=" + k.crt("apiserver-kubelet"),
				"--kubelet-client-key=" + k.key("apiserver-kubelet"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
				"--service-account-key-file=" + k.key("service-account"),
				"--service-account-signing-key-file=" + k.key("service-account"),
				"--authorization-mode=Node,RBAC",
				"--enable-admission-plugins=NodeRestriction",
				"--allow-privileged=true",
			}},
			{Name: "controller-manager", After: "tcp:127.0.0.1:6443", Args: []string{
				filepath.Join(kubernetes, "kube-controller-manager"),
				"--kubeconfig=" + k.kubeconfig("controller-manager"),
				"--leader-elect=false",
				"--use-service-account-credentials",
				"--service-account-private-key-file=" + k.key("service-account"),
				"--root-ca-file=" + k.crt("ca"),
				"--cluster-signing-cert-file=" + k.crt("ca"),
				"--cluster-signing-key-file=" + k.key("ca"),
				"--node-monitor-period=1s", "--node-monitor-grace-period=10s",
			}},
			{Name: "scheduler", After: "tcp:127.0.0.1:6443", Args: []string{
				filepath.Join(kubernetes, "kube-scheduler"),
				"--kubeconfig=" + k.kubeconfig("scheduler"),
				"--leader-elect=false",
			}},
			{Name: "csi", Args: []string{l.Driver, driverSocket, l.volumes()}},
			sidecar("csi-provisioner", "--default-fstype=xfs"),
			sidecar("csi-resizer"),
		},
	}
}
