package berth

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// GraceMargin is how much longer than its guest a berth may take to end, in seconds.
const GraceMargin = 10

// shimUser is the uid and gid of the shim: any will do, but root.
const shimUser int64 = 65532

// shimEnv keeps the shim small on large machines: Go's runtime takes 30 kB for each processor that it may use.
var shimEnv = []corev1.EnvVar{{Name: "GOMAXPROCS", Value: "2"}, {Name: "GOGC", Value: "25"}}

// Options are the administrator's part in a berth.
type Options struct {
	ShimImage          string            // the image of the shim
	PullPolicy         corev1.PullPolicy // how kubelet pulls it
	PullSecrets        []string          // the names of Secrets for it, in the guest's namespace
	CPURequest         resource.Quantity // what a berth requests for each vCPU
	UnsizedDisk        resource.Quantity // what a berth requests for a disk whose spec has no size, and the most that such a disk may have
	Emulation          bool              // adds the memory that emulating hosts need
	AllowedAnnotations []string          // those that a VirtualMachine may put on its berth; a trailing * matches any rest
	VolumeGroup        int64             // owns the file systems of claims
}

// GraceSeconds is the termination grace period of the VirtualMachine's berth, in seconds.
func GraceSeconds(vm *v1alpha1.VirtualMachine) int64 {
	return *cmp.Or(vm.Spec.TerminationGracePeriodSeconds, new(int64(60))) + GraceMargin
}

// Input is what a berth is made from.
type Input struct {
	VM      *v1alpha1.VirtualMachine               // owns the berth
	Node    string                                 // to which the berth is pinned; "" leaves the choice to the scheduler
	Claims  map[string]corev1.PersistentVolumeMode // of the disks' PersistentVolumeClaims that exist, by the disks' names
	Options Options                                // the administrator's
}

// PodFor makes the berth of a VirtualMachine: an unprivileged pod of the same name, owned by the VirtualMachine, whose one
// container runs the shim. A User fault says that the spec asks for what the administrator does not allow, or for a claim
// that is not there.
func PodFor(in Input) (*corev1.Pod, error) {
	vm := in.VM
	record, err := Record(&vm.Spec)
	if err != nil {
		return nil, err
	}
	template := cmp.Or(vm.Spec.Berth, &v1alpha1.BerthTemplate{})
	for _, key := range slices.Sorted(maps.Keys(template.Annotations)) {
		if !allowed(key, in.Options.AllowedAnnotations) {
			return nil, fault.NewUser(v1alpha1.ReasonBerthRefused, fmt.Errorf(
				"annotation %q is not on the administrator's list: remove it from spec.berth.annotations, or have it added to operator.allowedAnnotations of the chart", key))
		}
	}
	labels, annotations := map[string]string{}, map[string]string{}
	maps.Copy(labels, template.Labels)
	maps.Copy(annotations, template.Annotations)
	labels[LabelVM] = vm.Name
	annotations[AnnotationSpec], annotations[AnnotationRestartedAt] = record, vm.Spec.RestartedAt

	spec := podSpec(in)
	if err := addClaims(&spec, in); err != nil {
		return nil, err
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: vm.Name, Namespace: vm.Namespace,
			Labels: labels, Annotations: annotations,
			Finalizers:      []string{PodFinalizer},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, v1alpha1.GroupVersion.WithKind("VirtualMachine"))},
		},
		Spec: spec,
	}, nil
}

func podSpec(in Input) corev1.PodSpec {
	vm, o := in.VM, in.Options
	selector := map[string]string{}
	maps.Copy(selector, vm.Spec.NodeSelector)
	selector[LabelHost] = "true" // last: no guest can ask for a node that cannot run it
	if model := vm.Spec.CPU.Model; model != "" && model != CPUHostModel && model != CPUHostPassthrough {
		selector[LabelCPUModel+model] = "true"
	}
	volumes, mounts := secrets(vm)
	return corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicy(vm.Spec.RestartPolicy),
		TerminationGracePeriodSeconds: new(GraceSeconds(vm)),
		AutomountServiceAccountToken:  new(false),
		EnableServiceLinks:            new(false),
		NodeSelector:                  selector,
		Affinity:                      placement(vm.Spec.Affinity, in.Node),
		Tolerations:                   tolerations(vm),
		TopologySpreadConstraints:     vm.Spec.TopologySpreadConstraints,
		PriorityClassName:             vm.Spec.PriorityClassName,
		SchedulerName:                 vm.Spec.SchedulerName,
		ImagePullSecrets:              localReferences(o.PullSecrets),
		SecurityContext:               unprivileged(),
		Volumes:                       volumes,
		Containers: []corev1.Container{{
			Name:            Container,
			Image:           o.ShimImage,
			ImagePullPolicy: o.PullPolicy,
			Env:             shimEnv,
			Stdin:           true, // for kubectl attach -it
			TTY:             true,
			Resources:       resources(vm, o),
			VolumeMounts:    mounts,
			StartupProbe:    startupProbe(vm),
			ReadinessProbe:  userProbe(vm.Spec.ReadinessProbe, readiness),
			LivenessProbe:   userProbe(vm.Spec.LivenessProbe, liveness),
			SecurityContext: confined(),
		}},
	}
}

func unprivileged() *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(shimUser), RunAsGroup: new(shimUser),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func confined() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// secrets mounts what the agent reads from the berth. Only root, so only the agent, can read the files. A missing Secret does
// not keep the container from starting: the agent says which one is missing, and sees it come.
func secrets(vm *v1alpha1.VirtualMachine) (volumes []corev1.Volume, mounts []corev1.VolumeMount) {
	addKey := func(volume string, ref *v1alpha1.SecretKeyReference, file string) {
		if ref != nil {
			v, m := secret(volume, ref.Name, ref.Key, file)
			volumes, mounts = append(volumes, v), append(mounts, m)
		}
	}
	if c := vm.Spec.CloudInit; c != nil {
		addKey("user-data", c.UserDataSecretRef, UserDataPath)
		addKey("network-data", c.NetworkDataSecretRef, NetworkPath)
	}
	if i := vm.Spec.Ignition; i != nil {
		addKey("ignition", i.SecretRef, IgnitionPath)
	}
	v, m := pullSecrets(vm.Spec.ImagePullSecrets)
	return append(volumes, v...), append(mounts, m...)
}

func pullSecrets(refs []v1alpha1.LocalReference) (volumes []corev1.Volume, mounts []corev1.VolumeMount) {
	for i, s := range refs {
		v, m := secret(fmt.Sprintf("pull-%d", i), s.Name, corev1.DockerConfigJsonKey, path.Join(PullSecretsDir, s.Name, PullSecretFile))
		volumes, mounts = append(volumes, v), append(mounts, m)
	}
	return volumes, mounts
}

// secret mounts the key of a Secret as a file.
func secret(volume, name, key, file string) (corev1.Volume, corev1.VolumeMount) {
	return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: name, Optional: new(true), DefaultMode: new(int32(0o400)),
		Items: []corev1.KeyToPath{{Key: key, Path: path.Base(file)}},
	}}}, corev1.VolumeMount{Name: volume, MountPath: path.Dir(file), ReadOnly: true}
}

// The kinds of probes, as the shim is told them.
const (
	readiness = "--readiness"
	liveness  = "--liveness"
	startup   = "--startup"
)

// startupProbe holds the user's other probes back until the guest runs, however long its images take: kubelet never gives up
// on it. Giving up on a user's own startup probe is the agent's part, counted from when the guest runs. It is nil when there
// is nothing to hold back: it costs two writes, and a process.
func startupProbe(vm *v1alpha1.VirtualMachine) *corev1.Probe {
	probe := userProbe(vm.Spec.StartupProbe, startup)
	if probe == nil && (vm.Spec.ReadinessProbe != nil || vm.Spec.LivenessProbe != nil) {
		probe = &corev1.Probe{
			ProbeHandler:   corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/berth-shim", "started", "25s"}}},
			PeriodSeconds:  1,
			TimeoutSeconds: 30, // it waits for the guest itself
		}
	}
	if probe != nil {
		probe.FailureThreshold = math.MaxInt32
	}
	return probe
}

// userProbe is the probe as kubelet carries it out. A command is run in the guest, by the shim: what it answers while no guest
// program does depends on the kind of the probe.
func userProbe(p *v1alpha1.Probe, kind string) *corev1.Probe {
	if p == nil {
		return nil
	}
	probe := p.Probe.DeepCopy()
	if probe.Exec != nil {
		probe.Exec.Command = append([]string{"/berth-shim", "probe", kind, "--"}, probe.Exec.Command...)
	}
	return probe
}

// tolerations of a guest with disks on its node let its berth wait for that node: elsewhere it could not start.
func tolerations(vm *v1alpha1.VirtualMachine) []corev1.Toleration {
	list := slices.Clone(vm.Spec.Tolerations)
	if HasLocalDisks(vm) {
		for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			list = append(list, corev1.Toleration{Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
		}
	}
	return list
}

// placement prefers hosts that are ready, and pins the pod to node if one is given.
func placement(user *corev1.Affinity, node string) *corev1.Affinity {
	affinity := cmp.Or(user.DeepCopy(), &corev1.Affinity{})
	nodes := cmp.Or(affinity.NodeAffinity, &corev1.NodeAffinity{})
	affinity.NodeAffinity = nodes
	nodes.PreferredDuringSchedulingIgnoredDuringExecution = append(nodes.PreferredDuringSchedulingIgnoredDuringExecution,
		corev1.PreferredSchedulingTerm{Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: LabelReady, Operator: corev1.NodeSelectorOpIn, Values: []string{"true"}},
		}}})
	if node == "" {
		return affinity
	}
	required := nodes.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		required = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{}}}
	}
	here := corev1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}
	for i := range required.NodeSelectorTerms { // terms are alternatives: each needs it
		required.NodeSelectorTerms[i].MatchFields = append(required.NodeSelectorTerms[i].MatchFields, here)
	}
	nodes.RequiredDuringSchedulingIgnoredDuringExecution = required
	return affinity
}

func localReferences(names []string) []corev1.LocalObjectReference {
	var refs []corev1.LocalObjectReference
	for _, name := range names {
		refs = append(refs, corev1.LocalObjectReference{Name: name})
	}
	return refs
}

// forbiddenAnnotations start so, or after a * hold that, and steer container runtimes and confinement (CRI-O's own
// often have no slash). No list of an administrator's can allow them.
var forbiddenAnnotations = []string{
	"*crio.io", "*cri-o", "io.kubernetes.cri.", "io.containerd.", "org.systemd.",
	"container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/", "container.seccomp.security.alpha.kubernetes.io/",
	"berth.dev/", "*.berth.dev/", "io.katacontainers.", "run.oci.", "devices.gvisor.dev/", "dev.gvisor.",
}

func forbidden(key string) bool {
	return slices.ContainsFunc(forbiddenAnnotations, func(prefix string) bool {
		rest, ok := strings.CutPrefix(prefix, "*")
		return ok && strings.Contains(key, rest) || strings.HasPrefix(key, prefix)
	})
}

func allowed(key string, list []string) bool {
	return !forbidden(key) && slices.ContainsFunc(list, func(pattern string) bool {
		prefix, wild := strings.CutSuffix(pattern, "*")
		return key == pattern || wild && strings.HasPrefix(key, prefix)
	})
}
