package berth

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"net"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Container is the name of a berth's only container, and so of the guest's.
const Container = "guest"

// Finalizers. The operator removes both, on evidence that an agent gives.
const (
	PodFinalizer  = "berth.dev/guest" // keeps a berth until no process of its guest is left
	DiskFinalizer = "berth.dev/disks" // keeps a VirtualMachine until its node-local disks are gone
)

// Labels and annotations of a berth.
const (
	LabelVM               = "vm.berth.dev/name"      // holds the VirtualMachine's name. It is for people and selectors; nothing is proven by it
	AnnotationSpec        = "berth.dev/spec"         // holds the Record of the spec that the berth was made from
	AnnotationRestartedAt = "berth.dev/restarted-at" // holds the spec's restartedAt when the berth was made
	AnnotationErrand      = "berth.dev/errand"       // holds the Errand of a porter
)

// Labels of a node. The operator writes them from what the node's agent reports.
const (
	// LabelHost is "true" on nodes that can run guests. Berths need it; it outlives a restart of libvirtd, because
	// kubelet, when it restarts, ends pods whose node selector no longer matches.
	LabelHost         = "host.berth.dev/capable"
	LabelReady        = "host.berth.dev/ready"        // "true" on nodes that can start guests now. Berths prefer it
	LabelAcceleration = "host.berth.dev/acceleration" // holds how guests run there: KVM or Emulation
	LabelCPUModel     = "cpu-model.berth.dev/"        // the prefix of labels, "true", that name the CPU models of the node's guests
)

// CPU models that every host has in its own way.
const (
	CPUHostModel       = "host-model"
	CPUHostPassthrough = "host-passthrough"
)

// Paths in a berth's container, where kubelet mounts what the agent reads.
const (
	secretsDir     = "/run/berth"
	UserDataPath   = secretsDir + "/user-data/user-data"       // the file with cloud-init's user data
	NetworkPath    = secretsDir + "/network-data/network-data" // that with its network configuration
	IgnitionPath   = secretsDir + "/ignition/config"           // Ignition's configuration
	PullSecretsDir = secretsDir + "/pull"                      // has a directory for each pull secret, by its name
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

func digest(vm types.UID, network string) []byte {
	sum := sha256.Sum256([]byte(string(vm) + "/" + network))
	return sum[:]
}

// Owner returns the controller reference to the VirtualMachine whose berth the pod claims to be, nil if it refers to none. The
// pod's own name says nothing. Only together with that VirtualMachine's status is the claim a proof.
func Owner(pod metav1.Object) *metav1.OwnerReference { return owner(pod, "VirtualMachine") }

// PorterOwner is Owner of a porter, by its VirtualMachineImage or VirtualMachineCommit.
func PorterOwner(pod metav1.Object) *metav1.OwnerReference {
	return cmp.Or(owner(pod, "VirtualMachineImage"), owner(pod, "VirtualMachineCommit"))
}

func owner(pod metav1.Object, kind string) *metav1.OwnerReference {
	ref := metav1.GetControllerOf(pod)
	if ref == nil || ref.Kind != kind || ref.APIVersion != v1alpha1.GroupVersion.String() {
		return nil
	}
	return ref
}

// OwnerUID returns the UID of Owner.
func OwnerUID(pod metav1.Object) (types.UID, bool) {
	if ref := Owner(pod); ref != nil {
		return ref.UID, true
	}
	return "", false
}
