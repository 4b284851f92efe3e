package berth

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// inAPI is a berth as an API server without admission of its own gives it back.
func inAPI(t *testing.T, made *corev1.Pod) *corev1.Pod {
	t.Helper()
	pod := made.DeepCopy()
	pod.UID, pod.ResourceVersion = "pod-1", "7"
	s := &pod.Spec
	s.DNSPolicy, s.SchedulerName, s.ServiceAccountName, s.DeprecatedServiceAccount = corev1.DNSClusterFirst, "default-scheduler", "default", "default"
	s.Priority, s.PreemptionPolicy = new(int32(0)), new(corev1.PreemptLowerPriority)
	s.NodeName = "n1"
	for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		s.Tolerations = append(s.Tolerations, corev1.Toleration{
			Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(300)),
		})
	}
	c := &s.Containers[0]
	c.TerminationMessagePath, c.TerminationMessagePolicy = corev1.TerminationMessagePathDefault, corev1.TerminationMessageReadFile
	c.ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.NotRequired}}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		if p != nil {
			p.TimeoutSeconds, p.SuccessThreshold = max(p.TimeoutSeconds, 1), 1
		}
	}
	return pod
}

func TestUnlike(t *testing.T) {
	yes, no, ten := true, false, resource.MustParse("10Mi")
	guest := func(change func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { change(&p.Spec.Containers[0]) }
	}
	spec := func(change func(*corev1.PodSpec)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { change(&p.Spec) }
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Pod)
		says   string // "" where it is the berth still
	}{
		{"as the API server has it", func(*corev1.Pod) {}, ""},

		// What admission of clusters does, and Berth lives with.
		{"limits of a LimitRange", guest(func(c *corev1.Container) {
			c.Resources.Limits["example.com/x"], c.Resources.Requests["example.com/x"] = ten, ten
		}), ""},
		{"a mirror's image", guest(func(c *corev1.Container) { c.Image = "mirror.example:5000/registry.example/berth-shim:1" }), ""},
		{"its digest beside its tag", guest(func(c *corev1.Container) { c.Image += "@sha256:12" }), ""},
		{"its digest for its tag", guest(func(c *corev1.Container) { c.Image = "mirror/berth-shim@sha256:12" }), ""},
		{"always pulled", guest(func(c *corev1.Container) { c.ImagePullPolicy = corev1.PullAlways }), ""},
		{"more memory", guest(func(c *corev1.Container) {
			c.Resources.Limits[corev1.ResourceMemory], c.Resources.Requests[corev1.ResourceMemory] = resource.MustParse("9Gi"), resource.MustParse("9Gi")
		}), ""},
		{"the same memory, written otherwise", guest(func(c *corev1.Container) {
			memory := *resource.NewQuantity(c.Resources.Limits.Memory().Value(), resource.DecimalSI)
			c.Resources.Limits[corev1.ResourceMemory] = memory
		}), ""},
		{"a service account's token", spec(func(s *corev1.PodSpec) {
			token := corev1.ServiceAccountTokenProjection{Path: "token"}
			s.Volumes = append([]corev1.Volume{{Name: "kube-api-access-x", VolumeSource: corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &token}}},
			}}}, s.Volumes...)
			s.Containers[0].VolumeMounts = append(s.Containers[0].VolumeMounts, corev1.VolumeMount{
				Name: "kube-api-access-x", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount",
			})
		}), ""},
		{"a proxy in the environment", guest(func(c *corev1.Container) {
			c.Env = append([]corev1.EnvVar{{Name: "HTTPS_PROXY", Value: "http://proxy"}}, c.Env...)
		}), ""},
		{"another grace period, which the spec may have since", spec(func(s *corev1.PodSpec) { s.TerminationGracePeriodSeconds = new(int64(1)) }), ""},
		{"a default priority", spec(func(s *corev1.PodSpec) { s.Priority = new(int32(5)) }), ""},
		{"the namespace's node selector", spec(func(s *corev1.PodSpec) { s.NodeSelector["team"] = "blue" }), ""},
		{"a load balancer's readiness gate", spec(func(s *corev1.PodSpec) {
			s.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "target-health.example/x"}}
		}), ""},
		{"a pull secret", spec(func(s *corev1.PodSpec) { s.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "default"}} }), ""},
		{"the name server of the node", spec(func(s *corev1.PodSpec) {
			s.DNSPolicy, s.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"169.254.20.10"}}
		}), ""},
		{"groups and a label of SELinux", spec(func(s *corev1.PodSpec) {
			s.SecurityContext.FSGroup, s.SecurityContext.SELinuxOptions = new(int64(1)), &corev1.SELinuxOptions{Level: "s0:c1,c2"}
		}), ""},
		{"more labels, annotations and finalizers", func(p *corev1.Pod) {
			p.Labels["topology.kubernetes.io/zone"], p.Annotations["k8s.v1.cni.cncf.io/networks"] = "a", "x"
			p.Finalizers = append([]string{"example.com/x"}, p.Finalizers...)
		}, ""},

		// What no guest is started in.
		{"another image", guest(func(c *corev1.Container) { c.Image = "evil" }), "containers[guest].image"},
		{"of another tag", guest(func(c *corev1.Container) { c.Image = "registry.example/berth-shim:2" }), "image"},
		{"a sidecar", spec(func(s *corev1.PodSpec) { s.Containers = append(s.Containers, corev1.Container{Name: "proxy"}) }), "[guest proxy]"},
		{"an init container", spec(func(s *corev1.PodSpec) { s.InitContainers = []corev1.Container{{Name: "init"}} }), "initContainers"},
		{"a debug container", spec(func(s *corev1.PodSpec) {
			s.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
		}), "ephemeralContainers"},
		{"no container", spec(func(s *corev1.PodSpec) { s.Containers = nil }), "containers"},
		{"the host's network", spec(func(s *corev1.PodSpec) { s.HostNetwork = true }), "hostNetwork"},
		{"the host's processes", spec(func(s *corev1.PodSpec) { s.HostPID = true }), "hostPID"},
		{"the host's IPC", spec(func(s *corev1.PodSpec) { s.HostIPC = true }), "hostIPC"},
		{"users of its own", spec(func(s *corev1.PodSpec) { s.HostUsers = &no }), "hostUsers"},
		{"shared processes", spec(func(s *corev1.PodSpec) { s.ShareProcessNamespace = &yes }), "shareProcessNamespace"},
		{"another runtime", spec(func(s *corev1.PodSpec) { s.RuntimeClassName = new("kata") }), "runtimeClassName"},
		{"a deadline", spec(func(s *corev1.PodSpec) { s.ActiveDeadlineSeconds = new(int64(1)) }), "activeDeadlineSeconds"},
		{"another restart policy", spec(func(s *corev1.PodSpec) { s.RestartPolicy = corev1.RestartPolicyNever }), "restartPolicy"},
		{"any node", spec(func(s *corev1.PodSpec) { delete(s.NodeSelector, LabelHost) }), "nodeSelector"},
		{"another node than its disks'", spec(func(s *corev1.PodSpec) { s.Affinity = nil }), "affinity"},
		{"a volume of the host", spec(func(s *corev1.PodSpec) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "root", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
		}), "volumes[root].hostPath"},
		{"another Secret", spec(func(s *corev1.PodSpec) { s.Volumes[0].Secret.SecretName = "other" }), "volumes[user-data].secret.secretName"},
		{"a mount elsewhere", guest(func(c *corev1.Container) { c.VolumeMounts[0].MountPath = "/" }), "mountPath"},
		{"a mount twice", guest(func(c *corev1.Container) { c.VolumeMounts = append(c.VolumeMounts, c.VolumeMounts[0]) }), "volumeMounts"},
		{"privilege", guest(func(c *corev1.Container) { c.SecurityContext.Privileged = &yes }), "privileged"},
		{"escalation", guest(func(c *corev1.Container) { c.SecurityContext.AllowPrivilegeEscalation = &yes }), "allowPrivilegeEscalation"},
		{"no security context", guest(func(c *corev1.Container) { c.SecurityContext = nil }), "securityContext"},
		{"a capability", guest(func(c *corev1.Container) { c.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN"} }), "capabilities.add"},
		{"no capabilities that are dropped", guest(func(c *corev1.Container) { c.SecurityContext.Capabilities = nil }), "capabilities"},
		{"another user", spec(func(s *corev1.PodSpec) { s.SecurityContext.RunAsUser = new(int64(1)) }), "runAsUser"},
		{"no seccomp", spec(func(s *corev1.PodSpec) { s.SecurityContext.SeccompProfile.Type = corev1.SeccompProfileTypeUnconfined }), "seccompProfile"},
		{"another command", guest(func(c *corev1.Container) { c.Command = []string{"sh"} }), "command"},
		{"arguments", guest(func(c *corev1.Container) { c.Args = []string{"-x"} }), "args"},
		{"what Go's runtime reads", guest(func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: "GODEBUG", Value: "x"}) }), "env[GODEBUG]"},
		{"a ConfigMap as environment", guest(func(c *corev1.Container) { c.EnvFrom = []corev1.EnvFromSource{{Prefix: "x"}} }), "envFrom"},
		{"no terminal", guest(func(c *corev1.Container) { c.TTY = false }), "tty"},
		{"less memory", guest(func(c *corev1.Container) { c.Resources.Limits[corev1.ResourceMemory] = ten }), "limits.memory"},
		{"a request that is less", guest(func(c *corev1.Container) { c.Resources.Requests[corev1.ResourceMemory] = ten }), "requests.memory"},
		{"a CPU limit that throttles", guest(func(c *corev1.Container) { c.Resources.Limits[corev1.ResourceCPU] = resource.MustParse("100m") }), "limits.cpu"},
		{"no resources", guest(func(c *corev1.Container) { c.Resources = corev1.ResourceRequirements{} }), "resources"},
		{"another probe", guest(func(c *corev1.Container) { c.LivenessProbe.TCPSocket.Port = intstr.FromInt32(1) }), "livenessProbe"},
		{"no finalizer", func(p *corev1.Pod) { p.Finalizers = nil }, "finalizers"},
		{"another label", func(p *corev1.Pod) { p.Labels[LabelVM] = "other" }, "labels"},
		{"an annotation that steers the runtime", func(p *corev1.Pod) { p.Annotations["cpu-quota.crio.io"] = "disable" }, "crio.io"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made, err := PodFor(Input{VM: vm(everything), Node: "n1", Options: options})
			if err != nil {
				t.Fatal(err)
			}
			pod := inAPI(t, made)
			tt.change(pod)
			got, err := Unlike(pod, made)
			if err != nil || (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
				t.Errorf("it says %q, want %q: %v", got, tt.says, err)
			}
		})
	}
}

func TestMutation(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*corev1.Pod)
		image  string // that the status tells
		says   string
	}{
		{"as it was accepted", func(*corev1.Pod) {}, options.ShimImage, ""},
		{"accepted by an operator that did not record the image", func(*corev1.Pod) {}, "", ""},
		{"another image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "evil" }, options.ShimImage, "is evil"},
		{"a debug container", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
		}, options.ShimImage, `"debug" was added`},
		{"less memory than its guest", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory] = resource.MustParse("1023Mi")
		}, options.ShimImage, "1023Mi, less"},
		{"less memory than is usual now", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory] = resource.MustParse("1Gi")
		}, options.ShimImage, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := vm()
			pod, err := PodFor(Input{VM: vm, Options: options})
			if err != nil {
				t.Fatal(err)
			}
			pod.ObjectMeta = metav1.ObjectMeta{Name: pod.Name, UID: "pod-1"}
			vm.Status.Berth = &v1alpha1.BerthReference{PodName: pod.Name, PodUID: pod.UID, Image: tt.image}
			tt.change(pod)
			got := Mutation(pod, vm)
			if (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
				t.Errorf("it says %q, want %q", got, tt.says)
			}
			TrimForCache(pod)
			if trimmed := Mutation(pod, vm); trimmed != got {
				t.Errorf("of what the cache keeps it says %q, not %q", trimmed, got)
			}
		})
	}
}
