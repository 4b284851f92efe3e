package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// failpointsPort is where agents with failpoints take orders.
const failpointsPort = "22381"

// TestAgentCrashes ends the agent, as kill -9 does, before and after each step of a guest's start, pause and end. The
// next agent goes on from there: with the same QEMU if there was one, never with a second.
func TestAgentCrashes(t *testing.T) {
	l := startAlone(t)
	l.failpoints()
	nodes := strings.Fields(os.Getenv("LAB_NODES"))
	// Each node's agent is crashed by a guest of its own, side by side.
	t.Run("on each node", func(t *testing.T) {
		for i, point := range []string{"beforeStep", "afterStep"} {
			t.Run(point, func(t *testing.T) {
				l := start(t)
				a := agentOn(l, nodes[i%len(nodes)])
				a.crashes(point)
			})
		}
	})
}

// crashed is a guest whose life is full of crashes.
const crashed = `
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: tiny}
spec:
  state: Stopped
  terminationGracePeriodSeconds: 20
  memory: {size: 96Mi}
  kernel: {image: $KERNEL, initrdPath: /boot/initrd, commandLine: console=ttyS0 no_timer_check}
  disks: [{name: data, image: $TINY}]
  cloudInit: {userData: "#cloud-config"}
  nodeSelector: {kubernetes.io/hostname: NODE}
`

// crashes leads a guest through all that an agent does for it.
func (a *agent) crashes(point string) {
	l := a.lab
	l.apply(strings.Replace(crashed, "NODE", a.node, 1))
	uid := string(l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped)).UID)
	one := watchOne(uid)
	stops := []string{"Shutdown", "Clear", "Exit", ""}
	for i, step := range []string{"MakeDisks", "Create", "Place", "Plug", "Seed", "Attach", "Resume", "Tell"} {
		l.Logf("start, crash at %s", step)
		a.during(point, step, func() { l.patch("tiny", `{"state":"Running"}`) })
		l.vm("tiny", "to be Ready", isReady)
		console := l.logs("tiny")
		console.await("tiny: up")
		if n := strings.Count(console.String(), "Linux version"); n != 1 {
			l.Errorf("the guest booted %d times", n)
		}
		if step == "Tell" {
			l.Log("pause, crash at Suspend; go on, crash at Resume")
			a.during(point, "Suspend", func() { l.patch("tiny", `{"state":"Paused"}`) })
			l.vm("tiny", "to be Paused", phase(v1alpha1.PhasePaused))
			a.during(point, "Resume", func() { l.patch("tiny", `{"state":"Running"}`) })
			l.vm("tiny", "to run on", phase(v1alpha1.PhaseRunning))
		}
		stop := stops[i%len(stops)]
		l.Logf("stop, crash at %s", stop)
		a.during(point, stop, func() { l.patch("tiny", `{"state":"Stopped"}`) })
		vm := l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped))
		if !exited(vm, v1alpha1.ReasonPoweredOff, 0) {
			l.Errorf("the guest ended with %+v", vm.Status.LastExit)
		}
	}
	l.Log("delete, crash at RemoveDisks")
	a.during(point, "RemoveDisks", func() { l.kubectl("", "delete", "vm", "tiny", "--wait=false") })
	l.vm("tiny", "to be gone", isGone)
	if pids := one(); pids != "" {
		l.Errorf("there were several QEMUs at once: %s", pids)
	}
	nothingLeft(l, uid)
}

// agent is the agent of one node.
type agent struct {
	*lab
	node, address string
}

func agentOn(l *lab, node string) *agent {
	l.Helper()
	return &agent{l, node, l.kubectl("", "get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)}
}

// failpoints puts agents into the lab that can be crashed, for the time of the test.
func (l *lab) failpoints() {
	l.Helper()
	build := exec.CommandContext(l.Context(), "lab", "-root", env.Root(), "failpoints")
	build.Env = append(os.Environ(), "BERTH_CACHE="+filepath.Dir(os.Getenv("LAB_DIR")))
	build.Stderr = os.Stderr
	out, err := build.Output()
	if err != nil {
		l.Fatalf("building with failpoints: %v", err)
	}
	reference := regexp.MustCompile(`LAB_AGENT_FAILPOINTS='([^']*)'`).FindSubmatch(out)
	if reference == nil {
		l.Fatalf("no image with failpoints in %q", out)
	}
	is := l.kubectl("", "-n", "berth-system", "get", "daemonset/berth-agent", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	use := func(image, env string) {
		l.system("set", "env", "daemonset/berth-agent", "GOFAIL_HTTP"+env)
		l.system("set", "image", "daemonset/berth-agent", "agent="+image)
		l.system("rollout", "status", "daemonset/berth-agent", "--timeout=2m")
	}
	l.Cleanup(func() { use(is, "-") })
	use(string(reference[1]), "=:"+failpointsPort)
}

// during does something in the course of which the agent crashes at a step, and brings the next agent up. No step is no crash.
func (a *agent) during(point, step string, do func()) {
	a.Helper()
	if step == "" {
		do()
		return
	}
	if err := a.failpoint(http.MethodPut, point, fmt.Sprintf("return(%q)", step)); err != nil {
		a.Fatalf("setting failpoint %s: %v", point, err)
	}
	do()
	env.Eventually(a, "the agent's crash at "+step, func() bool {
		return a.failpoint(http.MethodGet, point, "") != nil
	})
	a.revive()
	env.Eventually(a, "the next agent", func() bool {
		return a.failpoint(http.MethodGet, "", "") == nil
	})
}

// failpoint asks the agent for a failpoint, or sets it. An error says that the agent does not answer, or refuses.
func (a *agent) failpoint(method, point, terms string) error {
	url := "http://" + a.address + ":" + failpointsPort + "/" + point
	request, err := http.NewRequestWithContext(a.Context(), method, url, strings.NewReader(terms))
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err == nil && method == http.MethodPut && answer.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("%s: %s", answer.Status, raw)
	}
	return err
}

// revive replaces the node's agent that has crashed: kubelet would let it rest for longer and longer.
func (a *agent) revive() {
	a.Helper()
	var pods corev1.PodList
	if err := a.List(a.Context(), &pods, client.InNamespace("berth-system"), client.MatchingLabels{"app.kubernetes.io/name": "berth-agent"}); err != nil {
		a.Fatalf("listing agents: %v", err)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Spec.NodeName == a.node {
			if err := client.IgnoreNotFound(a.Delete(a.Context(), pod, client.GracePeriodSeconds(1))); err != nil {
				a.Fatalf("deleting agent: %v", err)
			}
		}
	}
}
