package chart

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/berth-dev/berth/test/env"
)

// namespace is not the usual one: nothing may depend on it.
const namespace = "elsewhere"

// helm runs helm on the chart.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath("helm")
	if err != nil {
		env.Missing(t, "needs helm")
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return errs.String(), err
	}
	return out.String(), nil
}

func chartPath() string { return filepath.Join(env.Root(), "charts", "berth") }

func render(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return helm(t, append([]string{"template", "berth", chartPath(), "--namespace", namespace, "--kube-version", "1.37.0"}, args...)...)
}

// objects renders the chart with its defaults.
func objects(t *testing.T, args ...string) (list []*unstructured.Unstructured) {
	t.Helper()
	out, err := render(t, args...)
	if err != nil {
		t.Fatalf("rendering: %v: %s", err, out)
	}
	docs := yaml.NewYAMLOrJSONDecoder(strings.NewReader(out), 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := docs.Decode(u); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatalf("reading what was rendered: %v", err)
		}
		if len(u.Object) > 0 {
			list = append(list, u)
		}
	}
}

func TestLint(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", chartPath()); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestValues(t *testing.T) {
	t.Run("are refused", func(t *testing.T) {
		tests := []struct{ name, value, says string }{
			{"a typo in a section", "operater.replicas=2", "operater"},
			{"a typo in a field", "operator.replica=2", "replica"},
			{"a typo in a field of the agent", "agent.accelerate=KVM", "accelerate"},
			{"a typo in a field of the image", "image.repository=x", "repository"},
			{"a typo among capabilities", "agent.capabilities.sysAdmin=true", "sysAdmin"},
			{"an acceleration that is none", "agent.acceleration=kvm", "acceleration"},
			{"no replica", "operator.replicas=0", "replicas"},
			{"a CPU request of nothing", "operator.cpuRequestPerVCPU=0", "cpuRequestPerVCPU"},
			{"a CPU request that is no quantity", "operator.cpuRequestPerVCPU=much", "cpuRequestPerVCPU"},
			{"root's group for volumes", "operator.volumeGroup=0", "volumeGroup"},
			{"a directory that is relative", "agent.stateDir=var/lib/berth", "stateDir"},
			{"a port out of range", "agent.metricsPort=70000", "metricsPort"},
			{"a registry with a scheme", "agent.insecureRegistries={http://r}", "insecureRegistries"},
			{"a mirror without a scheme", "agent.registries[0].host=quay.io,agent.registries[0].mirrors={mirror.example.com}", "mirrors"},
			{"a certificate that is none", "agent.registries[0].host=quay.io,agent.registries[0].ca=MII", "ca"},
			{"a mirror of nothing", "agent.registries[0].mirrors={https://mirror.example.com}", "host"},
			{"an annotation with a comma", `operator.allowedAnnotations={a\,b}`, "allowedAnnotations"},
			{"a subnet that is none", "agent.guestSubnet=10.0.2.0", "guestSubnet"},
			{"no pulls at all", "agent.pulls.perNode=0", "perNode"},
			{"a share that is none", "agent.imageReserve.percent=100", "percent"},
			{"a size that is none", "agent.imageReserve.size=much", "size"},
			{"a pull policy that is none", "image.pullPolicy=Sometimes", "pullPolicy"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				out, err := render(t, "--set", tt.value)
				if err == nil {
					t.Fatal("it was accepted")
				}
				if !strings.Contains(out, tt.says) {
					t.Errorf("the message does not say %q: %s", tt.says, out)
				}
			})
		}
	})
	t.Run("reach the manifests", func(t *testing.T) {
		tests := []struct{ name, value, says string }{
			{"a mirror", "image.registry=mirror:5000/berth", "mirror:5000/berth/berth-operator:"},
			{"a whole CPU for each vCPU", "operator.cpuRequestPerVCPU=1", "-cpu-request-per-vcpu=1\n"},
			{"a mirror of a registry", "agent.registries[0].host=quay.io,agent.registries[0].mirrors={https://m/q}", `"-registries=[{\"host\":\"quay.io\",\"mirrors\":[\"https://m/q\"]}]"` + "\n"},
			{"a group for volumes", "operator.volumeGroup=1879113729", "-volume-group=1879113729\n"},
			{"a share of one", "operator.cpuRequestPerVCPU=0.5", "-cpu-request-per-vcpu=0.5\n"},
			{"a tag", "image.tag=v9", "ghcr.io/berth-dev/berth-shim:v9"},
			{"emulation", "agent.acceleration=Emulation", "-emulation=true"},
			{"pull secrets of the shim", "image.shimPullSecrets={a,b}", "-shim-pull-secrets=a,b"},
			{"no allowed annotations", "operator.allowedAnnotations=null", "-emulation=false"},
			{"a node selector", "agent.nodeSelector.kvm=yes", "kvm: \"yes\""},
			{"tolerations that are none", "agent.tolerations=null", "kind: DaemonSet"},
			{"pulls", "agent.pulls.perNamespace=1", "-max-pulls-per-namespace=1"},
			{"a reserve", "agent.imageReserve.size=20Gi", "-reserve-size=20Gi"},
			{"required confinement", "agent.requireConfinement=true", "-require-confinement=true\n"},
			{"a month for stray disks", "agent.keepStrayDisks=720h", "-keep-stray-disks=720h\n"},
			{"a limit of images", "agent.maxImageSize=20Gi", "-max-image-size=20Gi\n"},
			{"a limit of disks without a size", "agent.maxUnsizedDisk=5Gi", "-max-unsized-disk=5Gi\n"},
			{"allowed annotations", "operator.allowedAnnotations={example.com/*}", "-allowed-annotations=example.com/*\n"},
			{"a directory", "agent.stateDir=/data/berth", "/data/berth"},
			{"the release's namespace in the policies", "image.tag=v9", "system:serviceaccount:" + namespace + ":berth-agent"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				out, err := render(t, "--set", tt.value)
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if !strings.Contains(out, tt.says) {
					t.Errorf("nothing says %q", tt.says)
				}
			})
		}
	})
}

func TestNothingIsPrivileged(t *testing.T) {
	for _, o := range objects(t) {
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range containers {
			if privileged, _, _ := unstructured.NestedBool(c.(map[string]any), "securityContext", "privileged"); privileged {
				t.Errorf("%s %s is privileged", o.GetKind(), o.GetName())
			}
		}
	}
}

// TestNothingIsAdded: no webhook, and nothing that others could speak to but the ports of the pods.
func TestNothingIsAdded(t *testing.T) {
	for _, o := range objects(t) {
		switch kind := o.GetKind(); kind {
		case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "APIService", "Service", "Ingress":
			t.Errorf("the chart has %s %s", kind, o.GetName())
		}
	}
}
