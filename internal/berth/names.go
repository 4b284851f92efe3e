package berth

import (
	"crypto/sha256"
	"encoding/base32"
	"net"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Container is the name of a berth's only container, and so of the guest's.
const Container = "guest"

// Finalizers. The operator removes both, on evidence that an agent gives.
const (
	// PodFinalizer keeps a berth until no process of its guest is left.
	PodFinalizer = "berth.dev/guest"
	// DiskFinalizer keeps a VirtualMachine until its node-local disks are gone.
	DiskFinalizer = "berth.dev/disks"
)

// Labels and annotations of a berth.
const (
	// LabelVM holds the VirtualMachine's name. It is for people and selectors; nothing is proven by it.
	LabelVM = "vm.berth.dev/name"
	// AnnotationSpec holds the Record of the spec that the berth was made from.
	AnnotationSpec = "berth.dev/spec"
	// AnnotationRestartedAt holds the spec's restartedAt when the berth was made.
	AnnotationRestartedAt = "berth.dev/restarted-at"
)

// Labels of a node. The operator writes them from what the node's agent reports.
const (
	// LabelHost is "true" on nodes that can run guests. Berths need it; it outlives a restart of libvirtd, because
	// kubelet, when it restarts, ends pods whose node selector no longer matches.
	LabelHost = "host.berth.dev/capable"
	// LabelReady is "true" on nodes that can start guests now. Berths prefer it.
	LabelReady = "host.berth.dev/ready"
	// LabelAcceleration holds how guests run there: KVM or Emulation.
	LabelAcceleration = "host.berth.dev/acceleration"
	// LabelCPUModel is the prefix of labels, "true", that name the CPU models of the node's guests.
	LabelCPUModel = "cpu-model.berth.dev/"
)

// CPU models that every host has in its own way.
const (
	CPUHostModel       = "host-model"
	CPUHostPassthrough = "host-passthrough"
)

// Paths in a berth's container, where kubelet mounts what the agent reads.
const (
	secretsDir = "/run/berth"
	// UserDataPath is the file with cloud-init's user data.
	UserDataPath = secretsDir + "/user-data/user-data"
	// PullSecretsDir has a directory for each pull secret, by its name.
	PullSecretsDir = secretsDir + "/pull"
	// PullSecretFile is the file in each of them.
	PullSecretFile = ".dockerconfigjson" //nolint:gosec // a name
)

// DomainName names the guest's domain in libvirt: unique in the cluster, and readable in virsh.
func DomainName(namespace, name string) string { return namespace + "_" + name }

// TapName names the guest's tap: unique on a host, at most 15 bytes (IFNAMSIZ - 1).
func TapName(vm types.UID, network string) string {
	return "bt" + strings.ToLower(base32.StdEncoding.EncodeToString(digest(vm, network))[:13])
}

// MAC is the hardware address of the guest's NIC of that number, from 0: locally administered, and stable for the life of
// the VirtualMachine. It has 44 bits of what nobody chooses, the UID: to meet another's on purpose takes as many
// VirtualMachines. Its first byte ends in 2, so it is never the 0xfe of taps.
func MAC(vm types.UID, nic int) net.HardwareAddr {
	mac := net.HardwareAddr(digest(vm, "nic"+strconv.Itoa(nic))[:6])
	mac[0] = mac[0]&0xf0 | 0x02
	return mac
}

// NetworkMAC is the hardware address that NICs had before MAC, for VirtualMachines from then: by the network's name.
func NetworkMAC(vm types.UID, network string) net.HardwareAddr {
	return append(net.HardwareAddr{0x02}, digest(vm, network)[:5]...)
}

func digest(vm types.UID, network string) []byte {
	sum := sha256.Sum256([]byte(string(vm) + "/" + network))
	return sum[:]
}
