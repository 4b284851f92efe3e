package e2e

import (
	"context"
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

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// failpointsPort is where agents with failpoints take orders.
const failpointsPort = "22381"

// TestAgentCrashes ends the agent, as kill -9 does, before and after each step of a guest's start, pause and end. The
// next agent goes on from there: with the same QEMU if there was one, never with a second. What it finds after one step is
// what it finds before the next, so make test has it crash at half of them before, at the others after.
func TestAgentCrashes(t *testing.T) {
	l := startAlone(t)
	l.failpoints("daemonset/berth-agent", "LAB_AGENT_FAILPOINTS")
	nodes := nodes(t)
	// Each node's agent is crashed by a guest of its own, side by side.
	t.Run("on each node", func(t *testing.T) {
		for i, point := range []string{"beforeStep", "afterStep"} {
			t.Run(point, func(t *testing.T) {
				t.Parallel()
				l := startAlone(t)
				victim{l, "berth-agent", nodes[i%len(nodes)]}.crashes(point, i)
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

// crashes leads a guest through all that an agent does for it. The short form crashes it at every other step, from
// number first on.
func (a victim) crashes(point string, first int) {
	l := a.lab
	l.apply(strings.Replace(crashed, "NODE", a.node, 1))
	uid := string(l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped)).UID)
	one := watchOne(uid)
	stops := []string{"Shutdown", "CleanUp", "EndShim", ""}
	for i, step := range []string{"MakeDisk", "CreateDomain", "MoveToCgroup", "ConnectNICs", "WriteSeed", "HandOver", "Resume", "NotifyShim"} {
		if *depth == 0 && i%2 != first {
			continue
		}
		l.Logf("start, crash at %s", step)
		a.during(point, step, func() { l.patch("tiny", `{"state":"Running"}`) })
		l.vm("tiny", "to be Ready", isReady)
		console := l.logs("tiny")
		console.await("tiny: up")
		if n := strings.Count(console.String(), "Linux version"); n != 1 {
			l.Errorf("the guest booted %d times", n)
		}
		if step == "NotifyShim" {
			l.Log("pause, crash at the report")
			a.during("beforeReport", "", func() { l.patch("tiny", `{"state":"Paused"}`) })
			l.vm("tiny", "to be Paused", phase(v1alpha1.PhasePaused))
			l.patch("tiny", `{"state":"Running"}`)
			l.vm("tiny", "to run on", phase(v1alpha1.PhaseRunning))
			l.Log("pause, crash at Pause; go on, crash at Resume")
			a.during(point, "Pause", func() { l.patch("tiny", `{"state":"Paused"}`) })
			l.vm("tiny", "to be Paused", phase(v1alpha1.PhasePaused))
			a.during(point, "Resume", func() { l.patch("tiny", `{"state":"Running"}`) })
			l.vm("tiny", "to run on", phase(v1alpha1.PhaseRunning))
		}
		stop := stops[i%len(stops)]
		l.Logf("stop, crash at %s", stop)
		end := func() { l.patch("tiny", `{"state":"Stopped"}`) }
		if stop == "" { // once without a crash
			end()
		} else {
			a.during(point, stop, end)
		}
		vm := l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped))
		if !exited(vm, v1alpha1.ReasonShutDown, 0) {
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

// TestOperatorCrashes ends the operator, as kill -9 does, before and after each of its actions in a guest's life. The
// next one goes on from there: one berth, and no finalizer that stays.
func TestOperatorCrashes(t *testing.T) {
	l := startAlone(t)
	l.failpoints("deployment/berth-operator", "LAB_OPERATOR_FAILPOINTS")
	l.Cleanup(func() { l.system("scale", "deployment/berth-operator", "--replicas=2") })
	l.system("scale", "deployment/berth-operator", "--replicas=1")
	v := victim{l, "berth-operator", ""}
	env.Eventually(t, "the one operator that is left to lead", func() bool {
		pods := v.pods()
		return len(pods) == 1 && v.leader() == pods[0].Name
	})
	for _, point := range []string{"beforeAction", "afterAction"} {
		uid, berth := "", types.UID("")
		for _, action := range []struct {
			name string
			asks func()
			is   func(*v1alpha1.VirtualMachine) bool
		}{
			{"addFinalizer", func() { l.apply(strings.Replace(tiny, "Seconds: 20", "Seconds: 0", 1)) }, isReady},
			{"deleteBerth", func() {
				berth = l.vm("tiny", "to be there", isReady).Status.Berth.PodUID
				l.patch("tiny", `{"restartedAt":"`+point+`"}`)
			}, func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Berth.PodUID != berth }},
			{"removeBerthFinalizer", func() { l.patch("tiny", `{"state":"Stopped"}`) }, phase(v1alpha1.PhaseStopped)},
			{"createBerth", func() { l.patch("tiny", `{"state":"Running"}`) }, isReady},
			{"removeFinalizer", func() { l.kubectl("", "delete", "vm", "tiny", "--wait=false") }, isGone[v1alpha1.VirtualMachine]},
			{"deleteFinished", func() {
				l.apply(once("0") + "  ttlSecondsAfterFinished: 0\n")
				uid = string(l.vm("tiny", "to have ended", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.Ended != nil }).UID)
			}, isGone[v1alpha1.VirtualMachine]},
		} {
			t.Logf("crash at %s of %s", point, action.name)
			v.during(point, action.name, action.asks)
			vm := l.vm("tiny", "to come to it", action.is)
			if vm != nil {
				uid = string(vm.UID)
			}
		}
		l.pod("tiny", "to be gone", isGone)
		nothingLeft(l, uid)
	}
}

// victim is a part of Berth that failpoints can crash.
type victim struct {
	*lab
	name string // of its pods
	node string // of its pod, "" for any
}

// build has the lab build more of Berth, and returns the variables that name it.
func (l *lab) build(verb ...string) map[string]string {
	l.Helper()
	build := exec.CommandContext(l.Context(), "lab", append([]string{"-root", env.Root()}, verb...)...)
	build.Env = append(os.Environ(), "BERTH_CACHE="+filepath.Dir(os.Getenv("LAB_DIR")))
	build.Stderr = os.Stderr
	out, err := build.Output()
	if err != nil {
		l.Fatalf("lab %s: %v", strings.Join(verb, " "), err)
	}
	variables := map[string]string{}
	for _, export := range regexp.MustCompile(`export (\w+)='([^']*)'`).FindAllSubmatch(out, -1) {
		variables[string(export[1])] = string(export[2])
	}
	return variables
}

// failpoints has a workload of Berth be such as can be crashed, for the time of the test.
func (l *lab) failpoints(workload, variable string) {
	l.Helper()
	image := l.build("failpoints")[variable]
	is := l.kubectl("", "-n", "berth-system", "get", workload, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	use := func(image, env string) {
		l.system("set", "env", workload, "GOFAIL_HTTP"+env)
		l.system("set", "image", workload, "*="+image)
		l.system("rollout", "status", workload, "--timeout=2m")
	}
	l.Cleanup(func() { use(is, "-") })
	use(image, "=:"+failpointsPort)
}

// during does something in the course of which the victim crashes, at a step where the point knows several, and brings
// the next one up.
func (v victim) during(point, step string, do func()) {
	v.Helper()
	terms := "return"
	if step != "" {
		terms = fmt.Sprintf("return(%q)", step)
	}
	env.Eventually(v, "failpoint "+point, func() bool { return v.failpoint(http.MethodPut, point, terms) == nil })
	do()
	env.Eventually(v, "the crash at "+step, func() bool {
		return v.failpoint(http.MethodGet, point, "") != nil
	})
	v.revive()
	env.Eventually(v, "the next "+v.name, func() bool {
		return v.failpoint(http.MethodGet, "", "") == nil
	})
}

// failpoint asks the victim for a failpoint, or sets it. An error says that it does not answer, refuses, or has none set.
func (v victim) failpoint(method, point, terms string) error {
	pods := v.pods()
	if len(pods) != 1 {
		return fmt.Errorf("there are %d of %s", len(pods), v.name)
	}
	url := "http://" + pods[0].Status.PodIP + ":" + failpointsPort + "/" + point
	request, err := http.NewRequestWithContext(v.Context(), method, url, strings.NewReader(terms))
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 { // also for a failpoint that is not set: it has crashed, and is there again
		err = fmt.Errorf("%s: %s", answer.Status, raw)
	}
	return err
}

// pods are the victim's, without those that are being deleted.
func (v victim) pods() (pods []corev1.Pod) {
	v.Helper()
	var list corev1.PodList
	if err := v.List(context.WithoutCancel(v.Context()), &list, client.InNamespace("berth-system"), client.MatchingLabels{"app.kubernetes.io/name": v.name}); err != nil {
		v.Fatalf("listing %s: %v", v.name, err)
	}
	for _, pod := range list.Items {
		if pod.DeletionTimestamp.IsZero() && (v.node == "" || pod.Spec.NodeName == v.node) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// revive replaces a victim that has crashed: kubelet would let it rest for longer and longer. When it returns, the one
// before does no more. It also serves as cleanup.
func (v victim) revive() {
	v.Helper()
	ctx := context.WithoutCancel(v.Context())
	v.yieldLease()
	for _, pod := range v.pods() {
		if err := client.IgnoreNotFound(v.Delete(ctx, &pod, client.GracePeriodSeconds(1))); err != nil {
			v.Fatalf("deleting %s: %v", v.name, err)
		}
		env.Eventually(v, "the end of "+pod.Name, func() bool { return apierrors.IsNotFound(v.Get(ctx, client.ObjectKeyFromObject(&pod), &pod)) })
	}
}

// yieldLease has a next leader not wait until the lease of the last one, which is dead, runs out.
func (v victim) yieldLease() {
	v.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: v.name}}
	if err := client.IgnoreNotFound(v.Delete(context.WithoutCancel(v.Context()), lease)); err != nil {
		v.Fatalf("deleting lease: %v", err)
	}
}
