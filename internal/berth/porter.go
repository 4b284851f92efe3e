package berth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// porterGrace is how long a porter may take to end, in seconds: whatever it is for is begun anew by the next.
const porterGrace = 5

// Errand is what a porter is for, as its annotation says: the node's agent reads it from there.
type Errand struct {
	Version     int      `json:"version"`               // errandVersion; goes up when an older agent would misread it
	Image       string   `json:"image"`                 // as the spec has it
	Digest      string   `json:"digest,omitempty"`      // what that means; "" if the porter is to find out
	RefreshedAt string   `json:"refreshedAt,omitempty"` // the spec's
	PullSecrets []string `json:"pullSecrets,omitempty"`
	Commit      *Commit  `json:"commit,omitempty"` // the image is not to be pulled but made, and pushed with PullSecrets; since version 2
}

// Commit is which disk becomes an image. The porter ends with what it knows of the VirtualMachineCommit's status, as JSON.
type Commit struct {
	VM      types.UID        `json:"vm"`
	Disk    string           `json:"disk"`
	Quiesce v1alpha1.Quiesce `json:"quiesce"`
}

const errandVersion = 2

// ParseErrand reads that of a porter. One of a newer version is an error.
func ParseErrand(pod *corev1.Pod) (e Errand, err error) {
	if err := json.Unmarshal([]byte(pod.Annotations[AnnotationErrand]), &e); err != nil {
		return e, fmt.Errorf("reading annotation %s: %w", AnnotationErrand, err)
	}
	if e.Version < 1 || e.Version > errandVersion {
		return e, fmt.Errorf("annotation %s has version %d, this agent knows %d: upgrade it", AnnotationErrand, e.Version, errandVersion)
	}
	return e, nil
}

// PorterName is that of the porter of an image, or a commit, for a node.
func PorterName(owner, node string) string {
	sum := sha256.Sum256([]byte(node))
	return owner + "-" + hex.EncodeToString(sum[:5])
}

// Porter makes the porter that brings an image to a node. It ends with the pull.
func Porter(image *v1alpha1.VirtualMachineImage, node, digest string, o Options) (*corev1.Pod, error) {
	errand := Errand{Version: 1, Image: image.Spec.Image, Digest: digest, RefreshedAt: image.Spec.RefreshedAt}
	return porter(image, "VirtualMachineImage", PorterName(image.Name, node), node, errand, image.Spec.ImagePullSecrets, shimMemory, o)
}

// The QEMU that reads a stopped guest's disk has so much of its own beside its guest's memory, which nothing runs in; in bytes.
const (
	ReaderMemory = 16 * mebi
	readerLimit  = 176 * mebi
)

// CommitPorter makes the porter that has a disk become an image, on the node that the VirtualMachine is bound to. It ends
// once that is pushed.
func CommitPorter(c *v1alpha1.VirtualMachineCommit, vm types.UID, node string, o Options) (*corev1.Pod, error) {
	errand := Errand{Version: errandVersion, Image: c.Spec.Image, Commit: &Commit{vm, c.Spec.DiskName, c.Spec.Quiesce}}
	var secrets []v1alpha1.LocalReference
	if name := c.Spec.PushSecretName; name != "" {
		secrets = append(secrets, v1alpha1.LocalReference{Name: name})
	}
	return porter(c, "VirtualMachineCommit", PorterName(c.Name, "commit on "+node), node, errand, secrets, shimMemory+ReaderMemory+readerLimit, o)
}

// porter makes a pod as unprivileged as a berth, whose one container runs the shim, and mounts the Secrets with which the
// node's agent speaks to the registry.
func porter(owner metav1.Object, kind, name, node string, errand Errand, secrets []v1alpha1.LocalReference, memory int64, o Options) (*corev1.Pod, error) {
	for _, s := range secrets {
		errand.PullSecrets = append(errand.PullSecrets, s.Name)
	}
	raw, err := json.Marshal(errand)
	if err != nil {
		return nil, fmt.Errorf("encoding errand: %w", err)
	}
	// The limits are for a container that starts soon, and a log.
	list := func(milliCPU, log int64) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewMilliQuantity(milliCPU, resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
			corev1.ResourceEphemeralStorage: *resource.NewQuantity(log, resource.BinarySI),
		}
	}
	volumes, mounts := pullSecrets(secrets)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: owner.GetNamespace(),
			Labels:          map[string]string{LabelVM: ""}, // no VirtualMachine's, but Berth's
			Annotations:     map[string]string{AnnotationErrand: string(raw)},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, v1alpha1.GroupVersion.WithKind(kind))},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: new(int64(porterGrace)),
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			NodeSelector:                  map[string]string{LabelHost: "true"},
			Affinity:                      placement(nil, node),
			ImagePullSecrets:              localReferences(o.PullSecrets),
			SecurityContext:               unprivileged(),
			Volumes:                       volumes,
			Containers: []corev1.Container{{
				Name: Container, Image: o.ShimImage, ImagePullPolicy: o.PullPolicy, Env: shimEnv,
				Resources: corev1.ResourceRequirements{Requests: list(10, mebi), Limits: list(1000, logRequest)}, VolumeMounts: mounts, SecurityContext: confined(),
			}},
		},
	}, nil
}
