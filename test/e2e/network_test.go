package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// services lead to the guest tiny, and to a pod that answers.
const services = `
apiVersion: v1
kind: Service
metadata: {name: tiny}
spec: {selector: {app: tiny}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: client}
spec: {selector: {app: client}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: client
    image: $TOOLS
    args: [serve, ":8080", hello from a pod]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// TestNetwork: pods reach a guest by its Service as long as it is ready, and it reaches them by theirs.
func TestNetwork(t *testing.T) {
	l := start(t)
	l.apply(services)
	l.apply(tiny + `
  berth: {labels: {app: tiny}}
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, failureThreshold: 1}
`)
	vm := l.vm("tiny", "to be Ready", isReady)
	console := l.logs("tiny")
	console.await("tiny: up")
	l.kubectl("", "wait", "pod/client", "--for=condition=Ready", "--timeout=1m")

	t.Log("in by its Service's name, out by the pod's")
	l.endpoint("true")
	env.Eventually(t, "kube-proxy to know the endpoint, and the guest to answer", func() bool {
		page, err := l.tryKubectl("", "exec", "client", "--", "/tools", "get", "http://tiny")
		return err == nil && strings.HasPrefix(page, "tiny ")
	})
	l.say("tiny", "fetch http://client")
	console.await("hello from a pod")

	t.Log("out of its Service and in again, as its probe says")
	l.say("tiny", "mute")
	l.vm("tiny", "not to be Ready", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonProbesFailing) && runs(vm)
	})
	l.endpoint("false")
	if said := l.forward("tiny", "80"); !strings.Contains(said, "lost connection to pod") {
		t.Errorf("kubectl port-forward to a port that nobody listens on ends with %q", said)
	}
	l.say("tiny", "serve")
	l.vm("tiny", "to be Ready again", isReady)
	l.endpoint("true")

	t.Log("counted by kubelet as what it is")
	env.Eventually(t, "the statistics of its container to hold QEMU", func() bool {
		const least = 48 << 20 // more than a shim ever takes
		return usage(l, vm) > least
	})
}

// forward connects once to a pod's port by kubectl port-forward, until that ends, and returns what it said.
func (l *lab) forward(pod, port string) string {
	l.Helper()
	address, said := l.portForward(pod, port)
	conn, err := (&net.Dialer{}).DialContext(l.Context(), "tcp", address)
	if err != nil {
		l.Fatal(err)
	}
	defer conn.Close()
	return said()
}

// portForward has kubectl port-forward lead from an address to a pod's port, until the test is over. said is what it
// says if it ends before.
func (l *lab) portForward(pod, port string) (address string, said func() string) {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	l.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "kubectl", "-n", l.ns, "port-forward", "pod/"+pod, ":"+port)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.Fatalf("kubectl port-forward: %v", err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n') // Forwarding from 127.0.0.1:43210 -> 80
	_, after, _ := strings.Cut(line, "Forwarding from ")
	address, _, _ = strings.Cut(after, " ")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return address, func() string {
		l.Helper()
		late := time.AfterFunc(waitTimeout, cancel)
		defer late.Stop()
		if err := <-ended; err == nil {
			l.Error("kubectl port-forward ended well")
		}
		return errs.String()
	}
}

// endpoint waits until the one endpoint of the Service tiny is ready, or is not.
func (l *lab) endpoint(ready string) {
	l.Helper()
	l.kubectl("", "wait", "endpointslice", "-l", "kubernetes.io/service-name=tiny",
		"--for=jsonpath={.endpoints[0].conditions.ready}="+ready, "--timeout=1m")
}

// usage is the memory of the guest's container in bytes, as kubelet tells metrics-server.
func usage(l *lab, vm *v1alpha1.VirtualMachine) int {
	l.Helper()
	var summary struct {
		Pods []struct {
			PodRef     struct{ UID string }
			Containers []struct {
				Name   string
				Memory struct{ WorkingSetBytes int }
			}
		}
	}
	raw := l.kubectl("", "get", "--raw", "/api/v1/nodes/"+vm.Status.NodeName+"/proxy/stats/summary")
	if err := json.Unmarshal([]byte(raw), &summary); err != nil {
		l.Fatalf("reading kubelet's statistics: %v", err)
	}
	for _, p := range summary.Pods {
		if p.PodRef.UID == string(vm.Status.Berth.PodUID) && len(p.Containers) == 1 {
			return p.Containers[0].Memory.WorkingSetBytes
		}
	}
	return 0
}

// TestProbes: a guest that fails its livenessProbe is restarted, one that does not pass its startupProbe is ended.
func TestProbes(t *testing.T) {
	t.Parallel()
	ended := func(vm *v1alpha1.VirtualMachine) bool {
		return phase(v1alpha1.PhaseSucceeded)(vm) && exited(vm, v1alpha1.ReasonShutDown, 0)
	}
	for policy, after := range map[v1alpha1.RestartPolicy]func(*v1alpha1.VirtualMachine) bool{
		v1alpha1.RestartOnFailure: restartedAfter(v1alpha1.ReasonShutDown, 0), v1alpha1.RestartNever: ended,
	} {
		t.Run("liveness under "+string(policy), func(t *testing.T) {
			l := start(t)
			l.apply(tiny + "  restartPolicy: " + string(policy) + "\n  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 2}\n" +
				"  startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 120}\n")
			l.vm("tiny", "to be Ready", isReady)
			l.logs("tiny").await("tiny: up")
			l.say("tiny", "mute")
			l.vm("tiny", "to come to its end", after)
		})
	}
	t.Run("startup", func(t *testing.T) {
		l := start(t)
		l.apply(tiny + "  restartPolicy: Never\n  startupProbe: {tcpSocket: {port: 81}, periodSeconds: 1, failureThreshold: 3}\n")
		l.vm("tiny", "to be ended", func(vm *v1alpha1.VirtualMachine) bool {
			return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, v1alpha1.ReasonStartupProbeFailed, 137)
		})
		l.event("tiny", v1alpha1.ReasonStartupProbeFailed)
	})
}
