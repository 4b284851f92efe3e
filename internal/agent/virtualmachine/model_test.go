package virtualmachine

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

const (
	vmUID  = types.UID("8f9c1d2e-0000-4000-8000-000000000001")
	digest = "sha256:00000000000000000000000000000000000000000000000000000000000000aa"
)

// world is a cluster of two nodes with one VirtualMachine. The agents in it are the real ones; hosts, kubelets, operator
// and API server are simulated, and as hostile as they are: libvirt forgets and notices late, no runtime ends a QEMU with
// its container, agents are killed amid their work and cut off from the API server.
type world struct {
	t       fatal
	now     time.Time
	boot    time.Duration // what the clock says that never jumps
	guests  machine.Host
	metrics *Metrics
	cluster cluster
	nodes   []*node
	pods    int    // counts the berths
	mortal  bool   // the VM, or its berth, may be deleted: else all that follows would be lost on a deleted one
	eager   bool   // operator and kubelets act after all that happens
	bound   string // the node that the status named last
	kept    bool   // its disk was made once, and is to be kept
}

func newWorld(t fatal, policy v1alpha1.RestartPolicy, ephemeral bool) *world {
	grace := int64(30)
	w := &world{
		t: t, now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), metrics: newMetrics(),
		guests: machine.Host{Acceleration: v1alpha1.AccelerationEmulation, GuestSubnet: netip.MustParsePrefix("10.0.2.0/30")},
		cluster: cluster{vm: &v1alpha1.VirtualMachine{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: vmUID, Generation: 1},
			Spec: v1alpha1.VirtualMachineSpec{
				State: v1alpha1.StateRunning, RestartPolicy: policy, TerminationGracePeriodSeconds: &grace,
				Memory:            v1alpha1.Memory{Size: resource.MustParse("128Mi")},
				Disks:             []v1alpha1.Disk{{Name: "root", Image: "registry/web:1", Ephemeral: ephemeral}},
				Networks:          []v1alpha1.Network{{Name: "default", Pod: &v1alpha1.PodNetwork{}}},
				SSHAuthorizedKeys: []string{"ssh-ed25519 AAAA"},
			},
		}},
	}
	v1alpha1.Default(&w.cluster.vm.Spec)
	for _, name := range []string{"node-1", "node-2"} {
		n := &node{world: w, name: name, host: hosttest.New(), enqueue: func(types.UID) {}, unreadable: map[string]bool{}}
		n.host.AddImage(store.Content{Digest: digest}, 1<<30)
		n.startAgent()
		w.nodes = append(w.nodes, n)
	}
	return w
}

// sync has the agents look at the guest once; one that is killed amid that is started anew.
func (n *node) sync() {
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(killed); !is {
				panic(r)
			}
			n.startAgent()
		}
		n.ticks, n.amid, n.ending = -1, nil, false
	}()
	if !n.cutOff {
		n.cache = n.world.cluster.copy()
	}
	if doomed := n.doomed(); doomed != 0 {
		defer func() {
			if all := n.host.QEMUs(string(vmUID)); len(all) > 0 && all[0].PID == doomed {
				n.world.t.Fatalf("a guest was not ended whose time is over; cannot be read: %v; %s", n.unreadable, n.world)
			}
		}()
	}
	if healthy := n.healthy(); healthy != 0 {
		defer func() {
			if all := n.host.QEMUs(string(vmUID)); len(all) != 1 || all[0].PID != healthy {
				n.world.t.Fatal("a guest was ended that ran well and that nobody wanted to end")
			}
		}()
	}
	_, _ = n.agent.sync(ctrl.LoggerInto(context.Background(), logr.Discard()), vmUID) // what fails is tried again
}

// here is the berth, if it is on the node.
func (n *node) here() *corev1.Pod {
	if p := n.world.cluster.pod; p != nil && p.Spec.NodeName == n.name {
		return p
	}
	return nil
}

// operate is the operator's part: it makes a berth, says which one counts, ends it, and lets go of what has ended.
func (w *world) operate(node string) {
	vm, pod := w.cluster.vm, w.cluster.pod
	if vm == nil {
		return
	}
	s := &vm.Status
	wanted := vm.DeletionTimestamp.IsZero() && vm.Spec.State != v1alpha1.StateStopped
	released := s.Berth == nil || s.ReleasedBerth == s.Berth.PodUID
	switch {
	case pod == nil && wanted && released && (vm.Spec.RestartPolicy != v1alpha1.RestartNever || w.pods == 0):
		for _, d := range s.Disks {
			if berth.OnNode(d) { // it is where it is
				node = s.NodeName
			}
		}
		w.makeBerth(node)
	case pod == nil && !vm.DeletionTimestamp.IsZero() && released &&
		(s.NodeName == "" || condition.Reason(s.Conditions, v1alpha1.ConditionDisksReady) == v1alpha1.ReasonDisksRemoved):
		w.cluster.vm = nil
	case pod == nil:
	case s.Berth == nil || s.Berth.PodUID != pod.UID:
		w.bound = pod.Spec.NodeName
		s.Berth, s.NodeName = &v1alpha1.BerthReference{PodName: pod.Name, PodUID: pod.UID}, pod.Spec.NodeName
	case pod.DeletionTimestamp.IsZero() && (!wanted || condition.Reason(s.Conditions, v1alpha1.ConditionRunning) == v1alpha1.ReasonBerthOutdated):
		w.deleteBerth()
	case !pod.DeletionTimestamp.IsZero() && s.ReleasedBerth == pod.UID && !w.node(pod).containerAlive():
		w.cluster.pod = nil
	}
}

// operateElsewhere has the operator act, and the scheduler prefer the node on which the guest was not.
func (w *world) operateElsewhere() {
	node := w.nodes[0]
	if w.cluster.vm != nil && w.cluster.vm.Status.NodeName == node.name {
		node = w.nodes[1]
	}
	w.operate(node.name)
}

func (w *world) makeBerth(node string) {
	claims := map[string]corev1.PersistentVolumeMode{}
	for _, d := range w.cluster.vm.Status.Disks {
		if d.ClaimName != "" {
			claims[d.Name] = d.VolumeMode
		}
	}
	pod, err := berth.PodFor(berth.Input{VM: w.cluster.vm, Claims: claims, Options: berth.Options{ShimImage: "shim", VolumeGroup: 1879113728}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.pods++
	pod.UID, pod.CreationTimestamp = types.UID("pod-"+strconv.Itoa(w.pods)), metav1.NewTime(w.now)
	pod.Spec.NodeName, pod.Status.Phase = node, corev1.PodPending
	w.cluster.pod = pod
}

func (w *world) deleteBerth() {
	if p := w.cluster.pod; p != nil && p.DeletionTimestamp.IsZero() {
		p.DeletionTimestamp = &metav1.Time{Time: w.now.Add(40 * time.Second)}
		w.node(p).terminate()
	}
}

func (w *world) node(p *corev1.Pod) *node {
	for _, n := range w.nodes {
		if n.name == p.Spec.NodeName {
			return n
		}
	}
	w.t.Fatalf("there is no node %s", p.Spec.NodeName)
	return nil
}

func (n *node) containerAlive() bool { return n.shim != nil && !n.shim.ended }

// accept is kubelet's first part: it takes the berth on. A container may be long in coming.
func (n *node) accept() {
	if p := n.here(); p != nil && p.Status.StartTime == nil {
		p.Status.StartTime = &metav1.Time{Time: n.world.now}
	}
}

// runContainer is kubelet's part: it starts the berth's container, again if the policy wants that.
func (n *node) runContainer() {
	p := n.here()
	if p == nil || !p.DeletionTimestamp.IsZero() || n.containerAlive() || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return
	}
	n.forgotten = false
	n.accept()
	id, _ := n.host.StartContainer(string(p.UID), berth.Container)
	n.shim = &shim{Container: n.host.Container(id), node: n}
	status := corev1.ContainerStatus{Name: berth.Container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	if had := p.Status.ContainerStatuses; len(had) > 0 {
		status.RestartCount, status.LastTerminationState = had[0].RestartCount+1, had[0].State
	}
	p.Status.Phase, p.Status.ContainerStatuses = corev1.PodRunning, []corev1.ContainerStatus{status}
}

// passProbe has the guest pass its startup probe.
func (n *node) passProbe() { n.here().Status.ContainerStatuses[0].Started = new(true) }

// endContainer ends the berth's container and leaves whatever else lives in it.
func (w *world) endContainer(n *node, code int32, message string) {
	if !n.containerAlive() {
		return
	}
	n.host.EndContainer(n.shim.ContainerID())
	n.shim.ended = true
	p := n.here()
	if p == nil || len(p.Status.ContainerStatuses) == 0 {
		return
	}
	p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: "Error", Message: message, FinishedAt: metav1.NewTime(w.now),
	}}
	if p.Spec.RestartPolicy == corev1.RestartPolicyNever || p.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && code == 0 {
		p.Status.Phase = corev1.PodFailed
	}
}

func (n *node) setRuntimeDown(down bool) {
	n.runtimeDown = down
	n.host.SetRuntimeDown(down)
}

// terminate is kubelet's part in the end of a berth: it asks the shim.
func (n *node) terminate() {
	if n.containerAlive() && !n.shim.Terminating {
		n.shim.Terminating, n.shim.terminatingSince = true, n.world.boot
	}
}

// pass lets time go by. Kubelet ends a container whose grace period is over.
func (w *world) pass(d time.Duration) {
	w.now, w.boot = w.now.Add(d), w.boot+d
	for _, n := range w.nodes {
		if n.containerAlive() && n.shim.Terminating && w.boot-n.shim.terminatingSince > 40*time.Second {
			w.endContainer(n, 137, "")
		}
	}
}

// reboot ends all that lives on a node; its disks stay. It boots at once, and its agent begins anew.
func (n *node) reboot() {
	n.host.KillQEMU(string(vmUID))
	n.host.ForgetDomain(string(vmUID))
	n.world.endContainer(n, 137, "")
	_ = n.host.Consoles.Remove(string(vmUID)) // on tmpfs
	_ = n.host.Store.RemoveSeed(string(vmUID))
	n.startAgent()
}

// lose takes the guest's directory away from the node, once the status has its disks.
func (n *node) lose() (lost bool) {
	vm := n.world.cluster.vm
	if vm == nil || vm.Status.NodeName != n.name || len(vm.Status.Disks) == 0 || n.cutOff || n.giveBack != nil {
		return false
	}
	n.giveBack, lost = n.host.LoseGuest(string(vmUID))
	return lost
}

// find brings it back, unless its VM was deleted meanwhile.
func (n *node) find() {
	if vm := n.world.cluster.vm; n.giveBack != nil && vm != nil && vm.DeletionTimestamp.IsZero() {
		n.giveBack()
	}
	n.giveBack = nil
}

// healthy is the QEMU, by its process ID, of a guest that runs as it should and that nobody has asked to end; 0 if there
// is none.
func (n *node) healthy() int {
	all := n.host.QEMUs(string(vmUID))
	probe := n.world.cluster.vm != nil && n.world.cluster.vm.Spec.StartupProbe != nil
	if len(all) != 1 || !n.containerAlive() || all[0].Container != n.shim.ContainerID() || all[0].State != libvirtd.Running ||
		!n.shim.Attached || n.shim.Terminating || n.forgotten || n.ending || probe {
		return 0
	}
	return all[0].PID
}

// doomed is the QEMU, by its process ID, of a guest whose end is certain by what is known of its process and container,
// whatever else is unknown; 0 if there is none.
func (n *node) doomed() int {
	all := n.host.QEMUs(string(vmUID))
	pod := n.here()
	if len(all) != 1 || pod == nil || n.amid != nil || n.runtimeDown || n.blind || n.forgotten || n.shim == nil || all[0].Pod != string(pod.UID) ||
		all[0].State == libvirtd.Crashed || n.cache.vm == nil || n.cache.vm.Status.Berth == nil || n.cache.vm.Status.Berth.PodUID != pod.UID {
		return 0
	}
	overdue := n.shim.Attached && n.shim.Terminating && !n.silent && n.world.boot-n.shim.terminatingSince >= 30*time.Second
	if all[0].Container != n.shim.ContainerID() || n.shim.ended || overdue {
		return all[0].PID
	}
	return 0
}

// check is what must hold at any moment.
func (w *world) check() {
	qemus := 0
	for _, n := range w.nodes {
		qemus += len(n.host.QEMUs(string(vmUID)))
		for _, breach := range n.host.Breaches() {
			w.t.Fatalf("on %s %s", n.name, breach)
		}
		disks, err := n.host.Store.Disks(string(vmUID))
		if err != nil {
			w.t.Fatal(err)
		}
		vm := w.cluster.vm
		if vm == nil || !vm.DeletionTimestamp.IsZero() || len(vm.Spec.Disks) == 0 || vm.Spec.Disks[0].Ephemeral || vm.Status.NodeName != n.name {
			continue
		}
		switch {
		case n.giveBack != nil && len(disks) > 0:
			w.t.Fatalf("the disk of a VM was made again on %s, since it was lost", n.name)
		case n.giveBack == nil && len(disks) == 0 && w.kept:
			w.t.Fatalf("the disk of a VM that lives was removed from %s", n.name)
		}
		w.kept = w.kept || len(disks) > 0
	}
	if vm, pod := w.cluster.vm, w.cluster.pod; vm != nil && pod != nil && pod.DeletionTimestamp.IsZero() && vm.Status.ReleasedBerth == pod.UID {
		w.t.Fatalf("berth %s was released, which is not being deleted", pod.UID)
	}
	if qemus > 1 {
		w.t.Fatalf("there are %d QEMUs in the cluster", qemus)
	}
}

// calm has nothing happen but that the agents look and time passes. They see nothing new, so what they do comes to an end.
func (w *world) calm() {
	started := map[*node]int{}
	for range 6 {
		for _, n := range w.nodes {
			if _, seen := started[n]; !seen {
				started[n] = n.starts
			}
			n.sync()
			w.check()
			n.host.NoticeExit(string(vmUID))
			if n.starts > started[n]+1 {
				w.t.Fatalf("%s starts QEMU again and again though nothing happens: %s", n.name, w)
			}
		}
		w.pass(25 * time.Second)
	}
}

// settle lets everybody do their work, undisturbed, until nothing changes any more.
func (w *world) settle() {
	for _, n := range w.nodes {
		n.silent, n.cutOff, n.blind = false, false, false
		clear(n.unreadable)
		n.find()
		n.host.SetLibvirtDown(false)
		n.setRuntimeDown(false)
	}
	for range 40 {
		for _, n := range w.nodes {
			if n.image == plan.ImagePulling {
				n.image = plan.ImageReady
			}
			n.silent = false
			n.sync()
			w.check()
			n.runContainer()
			n.sync()
			w.check()
			n.host.NoticeExit(string(vmUID))
			if n.containerAlive() && n.here() != nil && n.shim.Running {
				n.passProbe()
			}
		}
		w.operate(w.nodes[0].name)
		if w.settled() {
			return
		}
		w.pass(15 * time.Second)
	}
}

// settled: the world is as the API wants it.
func (w *world) settled() bool { return w.complaint() == "" }

// complaint is what is not as the API wants it, "" if nothing.
func (w *world) complaint() string {
	vm := w.cluster.vm
	var qemus []hosttest.QEMU
	left := ""
	for _, n := range w.nodes {
		qemus = append(qemus, n.host.QEMUs(string(vmUID))...)
		has, _ := n.host.Store.Has(string(vmUID))
		seed, _ := n.host.Store.HasSeed(string(vmUID))
		if has && vm != nil && vm.Spec.Disks[0].Ephemeral && vm.Status.NodeName != n.name {
			return "a guest that moved away left its directory"
		}
		// What is left of a VM that moved away and was deleted before this node heard of it is the administrator's to remove.
		if seed || n.host.Consoles.Exists(string(vmUID)) || has && vm == nil && n.name == w.bound {
			left += fmt.Sprintf(" a console: %t, a seed: %t, a directory: %t on %s", n.host.Consoles.Exists(string(vmUID)), seed, has, n.name)
		}
		if d, err := n.host.Libvirt.Domain(context.Background(), string(vmUID)); err != nil || d.Exists && len(n.host.QEMUs(string(vmUID))) == 0 {
			left += " a domain on " + n.name
		}
	}
	deleted := vm == nil || !vm.DeletionTimestamp.IsZero()
	ended := !deleted && vm.Spec.RestartPolicy == v1alpha1.RestartNever && w.pods > 0 &&
		(w.cluster.pod == nil || !w.cluster.pod.DeletionTimestamp.IsZero() || w.cluster.pod.Status.Phase == corev1.PodFailed)
	switch {
	case deleted && (vm != nil || w.cluster.pod != nil):
		return "a deleted VirtualMachine is still there"
	case deleted || ended || vm.Spec.State == v1alpha1.StateStopped:
		if len(qemus) > 0 || left != "" {
			return fmt.Sprintf("a guest that has ended left %d QEMUs and%s", len(qemus), left)
		}
		if !deleted && !ended && w.cluster.pod != nil {
			return "a guest that is stopped has a berth"
		}
		return ""
	case len(qemus) != 1:
		return "a wanted guest has no QEMU"
	}
	should := libvirtd.Running
	if vm.Spec.State == v1alpha1.StatePaused {
		should = libvirtd.Paused
	}
	pod := w.cluster.pod
	if pod == nil || !w.node(pod).containerAlive() {
		return "a guest has no container"
	}
	at := w.node(pod)
	switch {
	case qemus[0].State != should:
		return "a wanted guest is not in the state that it should be in"
	case qemus[0].Container != at.shim.ContainerID():
		return "its QEMU is not in its container"
	case !at.shim.Running:
		return "its shim has not been told"
	case at.shim.Resets != at.shim.ResetsDone || at.shim.NMIs != at.shim.NMIsDone:
		return "a button that was pressed was not heard"
	case vm.Status.Berth == nil || vm.Status.Berth.PodUID != pod.UID:
		return "its status names another berth"
	}
	return ""
}

// schedules is how many are tried, and shortSchedules with -short, as under the race detector, unless -rapid.checks says
// otherwise.
const (
	schedules      = "10000"
	shortSchedules = "300"
)

func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		count := schedules
		if testing.Short() {
			count = shortSchedules
		}
		if err := f.Value.Set(count); err != nil {
			t.Fatal(err)
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // little lives longer than a schedule
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]v1alpha1.RestartPolicy{v1alpha1.RestartAlways, v1alpha1.RestartNever}).Draw(t, "restart policy")
		w := newWorld(t, policy, rapid.Bool().Draw(t, "ephemeral disk"))
		if rapid.Bool().Draw(t, "nobody asks for cloud-init") {
			w.cluster.vm.Spec.SSHAuthorizedKeys = nil
		}
		if rapid.Bool().Draw(t, "display") {
			w.cluster.vm.Spec.Display = &v1alpha1.Display{Type: v1alpha1.DisplayVGA}
		}
		w.mortal, w.eager = rapid.Bool().Draw(t, "mortal"), rapid.Bool().Draw(t, "eager")
		if rapid.Bool().Draw(t, "startup probe") {
			w.cluster.vm.Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{PeriodSeconds: 10, FailureThreshold: 3}}
		}
		for _, n := range w.nodes {
			if rapid.Bool().Draw(t, "image is cached") {
				n.image = plan.ImageReady
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "begins") > 0 { // most of what can go wrong does so while a guest runs
			w.settle()
		}
		t.Repeat(w.actions())
		if rapid.IntRange(0, 3).Draw(t, "a calm") == 0 {
			w.calm()
		}
		w.settle()
		if complaint := w.complaint(); complaint != "" {
			t.Fatalf("%s: %s", complaint, w)
		}
	})
}

// String is for failures.
func (w *world) String() string {
	text := "VM "
	if vm := w.cluster.vm; vm != nil {
		text += string(vm.Spec.State) + " on " + vm.Status.NodeName + ", released " + string(vm.Status.ReleasedBerth)
		for _, c := range vm.Status.Conditions {
			text += ", " + c.Type + "=" + string(c.Status) + " " + c.Reason + " " + c.Message
		}
	}
	if p := w.cluster.pod; p != nil {
		text += "; berth " + string(p.UID) + " on " + p.Spec.NodeName + " " + string(p.Status.Phase)
	}
	return text
}

// actions are all that can happen.
func (w *world) actions() map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){
		"": func(*rapid.T) {
			w.check()
			if w.eager {
				w.operateElsewhere()
				for _, n := range w.nodes {
					n.runContainer()
				}
			}
		},
		"time passes": func(t *rapid.T) {
			w.pass(time.Duration(rapid.IntRange(1, 70).Draw(t, "seconds")) * time.Second)
		},
		"the clock jumps": func(t *rapid.T) {
			w.now = w.now.AddDate(0, 0, rapid.SampledFrom([]int{-1, 1}).Draw(t, "days"))
		},
		"operator": func(t *rapid.T) {
			w.operate(rapid.SampledFrom(w.nodes).Draw(t, "node").name)
		},
		"berth is deleted": func(t *rapid.T) { when(t, w.mortal && w.cluster.pod != nil, w.deleteBerth) },
		"spec changes": func(t *rapid.T) {
			when(t, w.mortal && w.cluster.vm != nil, func() {
				w.cluster.vm.Generation++
				w.cluster.vm.Spec.Memory.Size.Add(resource.MustParse("1Mi"))
			})
		},
		"the VM is deleted": func(t *rapid.T) {
			when(t, w.mortal && w.cluster.vm != nil && w.cluster.vm.DeletionTimestamp.IsZero(), func() {
				w.cluster.vm.DeletionTimestamp = &metav1.Time{Time: w.now}
			})
		},
		"guest tools are offered, or not": func(t *rapid.T) {
			when(t, w.cluster.vm != nil, func() {
				w.cluster.vm.Spec.GuestTools = rapid.SampledFrom([]v1alpha1.GuestTools{"", v1alpha1.GuestToolsOffered, v1alpha1.GuestToolsNone}).Draw(t, "tools")
			})
		},
		"the state is to be another": func(t *rapid.T) {
			states := []v1alpha1.State{v1alpha1.StateRunning, v1alpha1.StatePaused, v1alpha1.StateStopped}
			when(t, w.cluster.vm != nil, func() { w.cluster.vm.Spec.State = rapid.SampledFrom(states).Draw(t, "state") })
		},
	}
	for name, action := range nodeActions() {
		actions[name] = func(t *rapid.T) { action(t, w.some(t)) }
	}
	return actions
}

// some is a node, most often the berth's.
func (w *world) some(t *rapid.T) *node {
	all := append([]*node(nil), w.nodes...)
	if p := w.cluster.pod; p != nil {
		all = append(all, w.node(p), w.node(p), w.node(p), w.node(p))
	}
	return rapid.SampledFrom(all).Draw(t, "node")
}

// nodeActions are all that can happen on a node.
func nodeActions() map[string]func(*rapid.T, *node) {
	uid := string(vmUID)
	host := func(verb func(*hosttest.Host, string) bool) func(*rapid.T, *node) {
		return func(t *rapid.T, n *node) { when(t, verb(n.host, uid), func() {}) }
	}
	return map[string]func(*rapid.T, *node){
		"agent looks":         func(_ *rapid.T, n *node) { n.sync() },
		"agent dies amid":     amid(false, func(*node) { panic(killed{}) }),
		"shim is killed amid": amid(true, func(n *node) { n.world.endContainer(n, 137, "") }),
		"QEMU is killed amid": amid(true, func(n *node) { n.host.KillQEMU(uid) }),
		"agent is cut off":    func(_ *rapid.T, n *node) { n.cutOff = true },
		"or not":              func(_ *rapid.T, n *node) { n.cutOff = false },
		"shim speaks":         func(t *rapid.T, n *node) { when(t, n.silent, func() { n.silent = false }) },
		"image is there":      func(t *rapid.T, n *node) { when(t, n.image == plan.ImagePulling, func() { n.image = plan.ImageReady }) },
		"kubelet accepts":     func(_ *rapid.T, n *node) { n.accept() },
		"kubelet":             func(_ *rapid.T, n *node) { n.runContainer() },
		"shim is asked":       func(t *rapid.T, n *node) { when(t, n.containerAlive(), n.terminate) },
		"shim is killed":      func(t *rapid.T, n *node) { when(t, n.containerAlive(), func() { n.world.endContainer(n, 137, "") }) },
		"guest powers off":    host((*hosttest.Host).PowerOff),
		"guest panics":        host((*hosttest.Host).Panic),
		"its disk is full":    host((*hosttest.Host).PauseOnIOError),
		"QEMU is killed":      host((*hosttest.Host).KillQEMU),
		"libvirt notices":     host((*hosttest.Host).NoticeExit),
		"libvirt forgets":     func(t *rapid.T, n *node) { when(t, n.host.ForgetDomain(uid), func() { n.forgotten = true }) },
		"libvirtd is down": func(_ *rapid.T, n *node) { // which has the agent look at all guests
			n.host.SetLibvirtDown(true)
			n.sync()
		},
		"the runtime is down":  func(_ *rapid.T, n *node) { n.setRuntimeDown(true) },
		"the runtime is there": func(_ *rapid.T, n *node) { n.setRuntimeDown(false) },
		"somebody presses a button": func(t *rapid.T, n *node) {
			when(t, n.containerAlive() && n.shim.Attached, func() { n.shim.Resets, n.shim.NMIs = n.shim.Resets+1, n.shim.NMIs+1 })
		},
		"the shim reads slowly": func(t *rapid.T, n *node) { when(t, n.containerAlive(), func() { n.shim.Draining = true }) },
		"the probe passes": func(t *rapid.T, n *node) {
			when(t, n.containerAlive() && n.here() != nil && n.shim.Running, n.passProbe)
		},
		"libvirtd is there": func(_ *rapid.T, n *node) { n.host.SetLibvirtDown(false) },
		"libvirt is wrong": func(t *rapid.T, n *node) {
			right, err := n.host.Libvirt.Domain(context.Background(), uid)
			when(t, err == nil && right.State == libvirtd.Running && n.containerAlive() && !n.silent && !n.shim.Terminating, func() {
				wrong := libvirtd.Domain{}
				if rapid.Bool().Draw(t, "crashed") {
					wrong = right
					wrong.State = libvirtd.Crashed
				}
				n.sync() // the look before told the truth
				n.host.AnswerOnce(uid, wrong)
				n.sync()
			})
		},
		"something cannot be read":  func(t *rapid.T, n *node) { n.unreadable[rapid.SampledFrom(unreadables).Draw(t, "what")] = true },
		"all can be read":           func(_ *rapid.T, n *node) { clear(n.unreadable) },
		"its cache lacks the berth": func(_ *rapid.T, n *node) { n.blind = true },
		"and has it":                func(_ *rapid.T, n *node) { n.blind = false },
		"its directory is lost":     func(t *rapid.T, n *node) { when(t, n.lose(), func() {}) },
		"and found":                 func(_ *rapid.T, n *node) { n.find() },
		"host reboots":              func(_ *rapid.T, n *node) { n.reboot() },
	}
}

// amid has something happen while the agent is at work. ends says that it is the end of a guest.
func amid(ends bool, happens func(*node)) func(*rapid.T, *node) {
	return func(t *rapid.T, n *node) {
		n.ending = ends
		n.ticks, n.amid = rapid.IntRange(0, 30).Draw(t, "looks at the clock"), func() { happens(n) }
		n.sync()
	}
}

// when does something that can only happen now.
func when(t *rapid.T, can bool, do func()) {
	if !can {
		t.Skip()
	}
	do()
}
