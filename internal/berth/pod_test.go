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
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var update = flag.Bool("update", false, "write the goldens")

var options = Options{
	ShimImage: "registry.example/berth-shim:1", PullPolicy: corev1.PullIfNotPresent,
	CPURequest: resource.MustParse("100m"), AllowedAnnotations: []string{"prometheus.io/*", "sidecar.istio.io/inject"},
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
		"plain": {vm(), ""},
		"full":  {vm(everything), "n1"},
		"live":  {vm(func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Ephemeral = true }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := PodFor(tt.vm, tt.node, options)
			if err != nil {
				t.Fatal(err)
			}
			if why := Altered(pod, tt.vm); why != "" {
				t.Errorf("a berth as we make it counts as altered: %s", why)
			}
			if changes, err := Changes(pod.Annotations[AnnotationSpec], &tt.vm.Spec); err != nil || len(changes) > 0 {
				t.Errorf("it differs from its own spec in %+v: %v", changes, err)
			}
			slim := pod.DeepCopy()
			Slim(slim)
			if changes, err := Changes(slim.Annotations[AnnotationSpec], &tt.vm.Spec); err != nil || len(changes) > 0 || slim.Annotations[AnnotationRestartedAt] != tt.vm.Spec.RestartedAt {
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
	pod, err := PodFor(vm(everything), "", options)
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
	for name, probe := range map[string]func(*v1alpha1.VirtualMachineSpec){
		"readiness": func(s *v1alpha1.VirtualMachineSpec) { s.ReadinessProbe = &v1alpha1.Probe{} },
		"liveness":  func(s *v1alpha1.VirtualMachineSpec) { s.LivenessProbe = &v1alpha1.Probe{} },
	} {
		pod, err = PodFor(vm(probe), "", options)
		if err != nil {
			t.Fatal(err)
		}
		if c := pod.Spec.Containers[0]; c.StartupProbe == nil || c.StartupProbe.Exec == nil || c.StartupProbe.FailureThreshold != math.MaxInt32 {
			t.Errorf("nothing holds a user's %s probe back until the guest runs", name)
		}
	}
	pod, err = PodFor(vm(), "", options)
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
	_, err := PodFor(vm(func(s *v1alpha1.VirtualMachineSpec) {
		s.Berth = &v1alpha1.BerthTemplate{Annotations: map[string]string{"example.com/x": "y"}}
	}), "", options)
	if fault.ClassOf(err) != fault.User || fault.ReasonOf(err) != v1alpha1.ReasonBerthRefused {
		t.Errorf("a forbidden annotation: %v", err)
	}
}

func TestAltered(t *testing.T) {
	yes, ten := true, resource.MustParse("10Mi")
	tests := []struct {
		name   string
		change func(*corev1.PodSpec)
		says   string // "" where the promises hold
	}{
		{"as it was made", func(*corev1.PodSpec) {}, ""},
		{"a CPU limit of a LimitRange", func(s *corev1.PodSpec) {
			s.Containers[0].Resources.Limits[corev1.ResourceCPU] = resource.MustParse("1")
		}, ""},
		{"another registry", func(s *corev1.PodSpec) { s.Containers[0].Image = "mirror/berth-shim:1" }, ""},
		{"more memory", func(s *corev1.PodSpec) {
			s.Containers[0].Resources.Limits[corev1.ResourceMemory] = resource.MustParse("9Gi")
		}, ""},
		{"a sidecar", func(s *corev1.PodSpec) { s.Containers = append(s.Containers, corev1.Container{Name: "proxy"}) }, `"proxy" was added`},
		{"an init container", func(s *corev1.PodSpec) { s.InitContainers = []corev1.Container{{Name: "init"}} }, `"init" was added`},
		{"no container", func(s *corev1.PodSpec) { s.Containers = nil }, "guest was removed"},
		{"the host's network", func(s *corev1.PodSpec) { s.HostNetwork = true }, "hostIPC is true (true, false, false)"},
		{"the host's processes", func(s *corev1.PodSpec) { s.HostPID = true }, "(false, true, false)"},
		{"the host's IPC", func(s *corev1.PodSpec) { s.HostIPC = true }, "(false, false, true)"},
		{"shared processes", func(s *corev1.PodSpec) { s.ShareProcessNamespace = &yes }, "shareProcessNamespace is true"},
		{"privilege", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Privileged = &yes }, "securityContext.privileged"},
		{"escalation", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.AllowPrivilegeEscalation = &yes }, "allowPrivilegeEscalation"},
		{"no security context", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext = nil }, "securityContext of container guest was removed"},
		{"a capability", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
		}, "capabilities.add of container guest is [NET_ADMIN]"},
		{"no capabilities that are dropped", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Capabilities = nil }, "capabilities of container guest was removed"},
		{"another command", func(s *corev1.PodSpec) { s.Containers[0].Command = []string{"sh"} }, `command ["sh"]`},
		{"no terminal", func(s *corev1.PodSpec) { s.Containers[0].TTY = false }, "(true, false)"},
		{"less memory", func(s *corev1.PodSpec) { s.Containers[0].Resources.Limits[corev1.ResourceMemory] = ten }, "10Mi, less"},
		{"another runtime", func(s *corev1.PodSpec) { s.RuntimeClassName = new("kata") }, "runtimeClassName is kata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod, err := PodFor(vm(), "", options)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(&pod.Spec)
			got := Altered(pod, vm())
			if (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
				t.Errorf("it says %q, want %q", got, tt.says)
			}
			Slim(pod)
			if slim := Altered(pod, vm()); slim != got {
				t.Errorf("of what the cache keeps it says %q, not %q", slim, got)
			}
		})
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
		pod, err := PodFor(m, node, options)
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
