package berth

import (
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var update = flag.Bool("update", false, "write the goldens")

var options = Options{
	ShimImage: "registry.example/berth-shim:1", PullPolicy: corev1.PullIfNotPresent,
	CPURequest: resource.MustParse("100m"), AllowedAnnotations: []string{"prometheus.io/*", "sidecar.istio.io/inject"}, VolumeGroup: 1879113728,
}

func vm(changes ...func(*v1alpha1.VirtualMachineSpec)) *v1alpha1.VirtualMachine {
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "11111111-2222-3333-4444-555555555555"},
		Spec: v1alpha1.VirtualMachineSpec{
			State: v1alpha1.StateRunning, RestartPolicy: v1alpha1.RestartAlways, TerminationGracePeriodSeconds: new(int64(60)),
			CPU:      v1alpha1.CPU{Cores: 1, Sockets: 1, Threads: 1, Model: CPUHostModel},
			Memory:   v1alpha1.Memory{Size: resource.MustParse("1Gi")},
			Disks:    []v1alpha1.Disk{{Name: "root", Image: "registry.example/debian:12"}},
			Networks: []v1alpha1.Network{{Name: "default", Pod: &v1alpha1.PodNetwork{}}},
		},
	}
	for _, change := range changes {
		change(&vm.Spec)
	}
	return vm
}

func everything(s *v1alpha1.VirtualMachineSpec) {
	s.RestartPolicy, s.RestartedAt, s.TerminationGracePeriodSeconds = v1alpha1.RestartOnFailure, "today", new(int64(5))
	s.CPU = v1alpha1.CPU{Cores: 2, Sockets: 1, Threads: 2, Model: "EPYC-Rome"}
	s.Disks = []v1alpha1.Disk{
		{Name: "root", Image: "registry.example/debian:12", Size: new(resource.MustParse("20Gi"))},
		{Name: "tmp", Image: "registry.example/empty:1", Size: new(resource.MustParse("1Gi")), Ephemeral: true},
	}
	s.CloudInit = &v1alpha1.CloudInit{UserDataSecretRef: &v1alpha1.SecretKeyReference{Name: "web-user-data", Key: "userdata"}}
	s.Berth = &v1alpha1.BerthTemplate{Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"prometheus.io/scrape": "true"}}
	s.NodeSelector = map[string]string{"disk": "ssd", LabelHost: "false"} // the second must have no effect
	s.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
	s.PriorityClassName, s.SchedulerName = "high", "other"
	s.ImagePullSecrets = []v1alpha1.LocalReference{{Name: "registry"}}
	probe := corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}, PeriodSeconds: 3, FailureThreshold: 4}
	s.ReadinessProbe, s.LivenessProbe, s.StartupProbe = &v1alpha1.Probe{Probe: probe}, &v1alpha1.Probe{Probe: probe}, &v1alpha1.Probe{Probe: probe}
}

func TestPodFor(t *testing.T) {
	for name, tt := range map[string]struct {
		vm   *v1alpha1.VirtualMachine
		node string
	}{
		"plain":  {vm(), ""},
		"full":   {vm(everything), "n1"},
		"live":   {vm(func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Ephemeral = true }), ""},
		"claims": {vm(onClaims), ""},
		"network": {vm(func(s *v1alpha1.VirtualMachineSpec) {
			s.CloudInit = &v1alpha1.CloudInit{NetworkDataSecretRef: &v1alpha1.SecretKeyReference{Name: "web", Key: "networkdata"}}
		}), ""},
		"ignition": {vm(func(s *v1alpha1.VirtualMachineSpec) {
			s.Ignition = &v1alpha1.Ignition{SecretRef: &v1alpha1.SecretKeyReference{Name: "core", Key: "userdata"}}
		}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := PodFor(Input{VM: tt.vm, Node: tt.node, Claims: claims, Options: options})
			if err != nil {
				t.Fatal(err)
			}
			if why, err := Unlike(pod, pod.DeepCopy()); why != "" || err != nil {
				t.Errorf("a berth as we make it counts as another: %s, %v", why, err)
			}
			if why := Mutation(pod, tt.vm); why != "" {
				t.Errorf("a berth as we make it counts as changed: %s", why)
			}
			if changes, err := Changes(pod.Annotations[AnnotationSpec], &tt.vm.Spec); err != nil || len(changes) > 0 {
				t.Errorf("it differs from its own spec in %+v: %v", changes, err)
			}
			trimmed := pod.DeepCopy()
			TrimForCache(trimmed)
			if changes, err := Changes(trimmed.Annotations[AnnotationSpec], &tt.vm.Spec); err != nil || len(changes) > 0 || trimmed.Annotations[AnnotationRestartedAt] != tt.vm.Spec.RestartedAt {
				t.Errorf("the cache forgets what a berth was made from: %+v, %v", changes, err)
			}
			got, err := yaml.Marshal(pod)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "berth-"+name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("-want +got (go test -update writes it):\n%s", diff)
			}
		})
	}
}

func TestProbes(t *testing.T) {
	pod, err := PodFor(Input{VM: vm(everything), Options: options})
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	if c.StartupProbe.FailureThreshold != math.MaxInt32 || c.StartupProbe.TCPSocket == nil {
		t.Errorf("kubelet may give up on the startup probe, or it is not the user's: %+v", c.StartupProbe)
	}
	if c.ReadinessProbe.FailureThreshold != 4 || c.LivenessProbe.FailureThreshold != 4 {
		t.Error("readiness and liveness are not the user's own")
	}
	command := []string{"/bin/sh", "-c", "test -e /ready -- \"$0\"", "--"}
	pod, err = PodFor(Input{VM: vm(func(s *v1alpha1.VirtualMachineSpec) {
		probe := v1alpha1.Probe{Probe: corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}, TimeoutSeconds: 7, FailureThreshold: 4}}
		s.ReadinessProbe, s.LivenessProbe, s.StartupProbe = &probe, &probe, &probe
	}), Options: options})
	if err != nil {
		t.Fatal(err)
	}
	c = pod.Spec.Containers[0]
	for kind, probe := range map[string]*corev1.Probe{"--readiness": c.ReadinessProbe, "--liveness": c.LivenessProbe, "--startup": c.StartupProbe} {
		want := append([]string{"/berth-shim", "probe", kind, "--"}, command...)
		if diff := cmp.Diff(want, probe.Exec.Command); diff != "" || probe.TimeoutSeconds != 7 {
			t.Errorf("a command is not run in the guest, or has another timeout, %d s: -want +got:\n%s", probe.TimeoutSeconds, diff)
		}
	}
	if c.StartupProbe.FailureThreshold != math.MaxInt32 || c.ReadinessProbe.FailureThreshold != 4 {
		t.Errorf("kubelet may give up on the startup probe, or the readiness is not the user's: %+v, %+v", c.StartupProbe, c.ReadinessProbe)
	}
	for name, probe := range map[string]func(*v1alpha1.VirtualMachineSpec){
		"readiness": func(s *v1alpha1.VirtualMachineSpec) { s.ReadinessProbe = &v1alpha1.Probe{} },
		"liveness":  func(s *v1alpha1.VirtualMachineSpec) { s.LivenessProbe = &v1alpha1.Probe{} },
	} {
		pod, err = PodFor(Input{VM: vm(probe), Options: options})
		if err != nil {
			t.Fatal(err)
		}
		if c := pod.Spec.Containers[0]; c.StartupProbe == nil || c.StartupProbe.Exec == nil || c.StartupProbe.FailureThreshold != math.MaxInt32 {
			t.Errorf("nothing holds a user's %s probe back until the guest runs", name)
		}
	}
	pod, err = PodFor(Input{VM: vm(), Options: options})
	if err != nil {
		t.Fatal(err)
	}
	if c := pod.Spec.Containers[0]; c.StartupProbe != nil || c.ReadinessProbe != nil || c.LivenessProbe != nil {
		t.Error("there are probes that nobody asked for")
	}
}

func TestAnnotations(t *testing.T) {
	tests := []struct {
		key  string
		list []string
		want bool
	}{
		{"prometheus.io/scrape", options.AllowedAnnotations, true},
		{"sidecar.istio.io/inject", options.AllowedAnnotations, true},
		{"sidecar.istio.io/injector", options.AllowedAnnotations, false},
		{"example.com/x", options.AllowedAnnotations, false},
		{"example.com/x", nil, false},
		{"example.com/x", []string{"*"}, true},
		{"io.containerd.rdt-class", []string{"*"}, false},
		{"io.kubernetes.cri-o.Devices", []string{"*", "io.kubernetes.cri-o.Devices"}, false},
		{"io.kubernetes.cri.sandbox-id", []string{"*"}, false},
		{"cpu-quota.crio.io", []string{"*"}, false},
		{"irq-load-balancing.crio.io", []string{"*"}, false},
		{"unified-cgroup.crio.io/guest", []string{"*"}, false},
		{"seccomp-profile.kubernetes.cri-o.io", []string{"*"}, false},
		{"org.systemd.property.CPUWeight", []string{"*"}, false},
		{"container.apparmor.security.beta.kubernetes.io/guest", []string{"*"}, false},
		{"seccomp.security.alpha.kubernetes.io/pod", []string{"*"}, false},
		{"run.oci.handler", []string{"*"}, false},
		{"berth.dev/spec", []string{"*", "berth.dev/spec"}, false},
		{"vm.berth.dev/name", []string{"*"}, false},
	}
	for _, tt := range tests {
		if got := allowed(tt.key, tt.list); got != tt.want {
			t.Errorf("%s with %q: %t, want %t", tt.key, tt.list, got, tt.want)
		}
	}
	_, err := PodFor(Input{VM: vm(func(s *v1alpha1.VirtualMachineSpec) {
		s.Berth = &v1alpha1.BerthTemplate{Annotations: map[string]string{"example.com/x": "y"}}
	}), Options: options})
	if fault.ClassOf(err) != fault.User || fault.ReasonOf(err) != v1alpha1.ReasonBerthRefused {
		t.Errorf("a forbidden annotation: %v", err)
	}
}

func TestKubeletsWordsAreKeptAndBounded(t *testing.T) {
	for name, message := range map[string]string{"short": "not found", "long": strings.Repeat("x", 1<<20)} {
		pod := &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: message}},
		}}}}
		TrimForCache(pod)
		w := pod.Status.ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "ErrImagePull" || w.Message != message[:min(len(message), maxWaiting)] {
			t.Errorf("%s: kept is %.80v", name, w)
		}
	}
}

func TestOwner(t *testing.T) {
	ref := func(change func(*metav1.OwnerReference)) []metav1.OwnerReference {
		r := metav1.OwnerReference{APIVersion: "berth.dev/v1alpha1", Kind: "VirtualMachine", Name: "web", UID: "1", Controller: new(true)}
		change(&r)
		return []metav1.OwnerReference{r}
	}
	for name, tt := range map[string]struct {
		refs []metav1.OwnerReference
		want types.UID // "" for no owner
	}{
		"its controller is a VirtualMachine":          {ref(func(*metav1.OwnerReference) {}), "1"},
		"nobody owns it":                              {nil, ""},
		"the VirtualMachine does not control it":      {ref(func(r *metav1.OwnerReference) { r.Controller = nil }), ""},
		"its controller is of another kind":           {ref(func(r *metav1.OwnerReference) { r.Kind = "VirtualMachineHost" }), ""},
		"it is a VirtualMachine of another API group": {ref(func(r *metav1.OwnerReference) { r.APIVersion = "kubevirt.io/v1" }), ""},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "another", OwnerReferences: tt.refs}}
		uid, ok := OwnerUID(pod)
		if owner := Owner(pod); uid != tt.want || ok != (tt.want != "") || (owner != nil) != ok || ok && owner.Name != "web" {
			t.Errorf("%s: owner %+v, UID %q", name, owner, uid)
		}
	}
}

func TestPlacement(t *testing.T) {
	zone := corev1.NodeSelectorRequirement{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}
	rack := corev1.NodeSelectorRequirement{Key: "rack", Operator: corev1.NodeSelectorOpIn, Values: []string{"1"}}
	here := []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}}
	terms := func(list ...corev1.NodeSelectorTerm) *corev1.Affinity {
		return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: list}}}
	}
	labels := func(r corev1.NodeSelectorRequirement) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{r}}
	}
	both := func(r corev1.NodeSelectorRequirement) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{r}, MatchFields: here}
	}
	tests := []struct {
		name string
		user *corev1.Affinity
		node string
		want []corev1.NodeSelectorTerm
	}{
		{"nothing asked", nil, "", nil},
		{"a node alone", nil, "n1", []corev1.NodeSelectorTerm{{MatchFields: here}}},
		{"the user's alone", terms(labels(zone)), "", []corev1.NodeSelectorTerm{labels(zone)}},
		{"both", terms(labels(zone)), "n1", []corev1.NodeSelectorTerm{both(zone)}},
		{"a node in each alternative", terms(labels(zone), labels(rack)), "n1", []corev1.NodeSelectorTerm{both(zone), both(rack)}},
		{"pods that keep apart, and a node", &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}, "n1", []corev1.NodeSelectorTerm{{MatchFields: here}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.user.DeepCopy()
			got := placement(tt.user, tt.node)
			var list []corev1.NodeSelectorTerm
			if r := got.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
				list = r.NodeSelectorTerms
			}
			if diff := cmp.Diff(tt.want, list); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if p := got.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution; len(p) != 1 || p[0].Preference.MatchExpressions[0].Key != LabelReady {
				t.Errorf("it does not prefer hosts that are ready: %+v", p)
			}
			if diff := cmp.Diff(before, tt.user); diff != "" {
				t.Errorf("the user's own was changed:\n%s", diff)
			}
		})
	}
}

func FuzzPodFor(f *testing.F) {
	for _, seed := range []*v1alpha1.VirtualMachine{vm(), vm(everything), {}} {
		raw, err := json.Marshal(seed.Spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "n1")
	}
	f.Fuzz(func(t *testing.T, raw []byte, node string) {
		m := vm()
		if json.Unmarshal(raw, &m.Spec) != nil {
			return
		}
		pod, err := PodFor(Input{VM: m, Node: node, Options: options})
		if err != nil {
			return
		}
		if len(pod.Spec.Containers) != 1 || pod.Name != m.Name || len(pod.Finalizers) != 1 || pod.Labels[LabelVM] != m.Name || pod.Spec.HostNetwork {
			t.Errorf("the berth is %+v", pod)
		}
		if changes, err := Changes(pod.Annotations[AnnotationSpec], &m.Spec); err != nil || len(changes) > 0 {
			t.Errorf("it differs from its own spec in %+v: %v", changes, err)
		}
	})
}
