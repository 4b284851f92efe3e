package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// cluster is a real API server, with a stand-in for what writes statuses.
type cluster struct {
	*testing.T
	client.WithWatch
	config     *rest.Config
	kubeconfig string
	ns         string
}

// TestCluster runs the verbs that need the API alone, on one API server.
func TestCluster(t *testing.T) {
	log.SetLogger(logr.Discard())
	config, _ := env.APIServer(t)
	c, err := client.NewWithWatch(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	err = clientcmd.WriteToFile(api.Config{
		Clusters:       map[string]*api.Cluster{"c": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*api.AuthInfo{"u": {ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}},
		Contexts:       map[string]*api.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir()) // caches of discovery, keys of ssh
	for name, test := range map[string]func(*cluster){
		"names":     testNames,
		"ps":        testPS,
		"state":     testStateVerbs,
		"stalled":   testStalled,
		"rm":        testRM,
		"run":       testRun,
		"end":       testRunToTheEnd,
		"hang-up":   testHangUp,
		"inspect":   testInspect,
		"why":       testWhy,
		"wait":      testWaitAndEvents,
		"nodes":     testImagesAndSystem,
		"doctor":    testDoctor,
		"stats":     testStats,
		"version":   testVersion,
		"no guest":  testVerbsWithoutAGuest,
		"no screen": testNoScreen,
		"no berth":  testWithoutCRDs,
	} {
		t.Run(name, func(t *testing.T) {
			ns := "n-" + strings.ReplaceAll(name, " ", "-")
			if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}); err != nil {
				t.Fatal(err)
			}
			test(&cluster{t, c, config, kubeconfig, ns})
		})
	}
}

// run runs one command line.
func (c *cluster) run(args ...string) (out, errOut string, code int) {
	c.Helper()
	var o, e bytes.Buffer
	code = Main(c.Context(), append([]string{"--kubeconfig", c.kubeconfig, "-n", c.ns}, args...), genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &o, ErrOut: &e})
	if strings.ContainsAny(o.String()+e.String(), "\x1b\x07\r") {
		c.Errorf("%q prints control characters:\n%q\n%q", args, o.String(), e.String())
	}
	return o.String(), e.String(), code
}

// prints runs a command line that succeeds, and finds patterns in its output.
func (c *cluster) prints(args string, patterns ...string) string {
	c.Helper()
	out, errOut, code := c.run(strings.Fields(args)...)
	if code != 0 {
		c.Fatalf("%s ends with %d: %s", args, code, errOut)
	}
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			c.Errorf("%s does not print %q:\n%s", args, p, out)
		}
	}
	return out
}

// fails runs a command line that fails with a code, and finds patterns in what it says.
func (c *cluster) fails(code int, args string, patterns ...string) {
	c.Helper()
	out, errOut, got := c.run(strings.Fields(args)...)
	if got != code {
		c.Errorf("%s ends with %d, not %d: %s", args, got, code, errOut)
	}
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(errOut) {
			c.Errorf("%s does not say %q:\n%s\n%s", args, p, errOut, out)
		}
	}
}

func (c *cluster) create(objects ...client.Object) {
	c.Helper()
	for _, o := range objects {
		if o.GetNamespace() == "" {
			o.SetNamespace(c.ns)
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			c.Fatal(err)
		}
		status, err := json.Marshal(map[string]any{"status": content["status"]})
		if err != nil {
			c.Fatal(err)
		}
		if err := c.Create(c.Context(), o); err != nil {
			c.Fatal(err)
		}
		// a patch: those who stand in for operator and agents may have written a status already
		if err := c.Status().Patch(c.Context(), o, client.RawPatch(types.MergePatchType, status)); err != nil && !apierrors.IsNotFound(err) {
			c.Fatal(err)
		}
	}
}

func (c *cluster) vm(name string, change func(*v1alpha1.VirtualMachine)) *v1alpha1.VirtualMachine {
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: c.ns, Name: name}}
	vm.Spec.Memory.Size = resource.MustParse("64Mi")
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: "registry.example.org/d:1"}}
	if change != nil {
		change(vm)
	}
	return vm
}

func (c *cluster) get(name string) *v1alpha1.VirtualMachine {
	c.Helper()
	vm := &v1alpha1.VirtualMachine{}
	if err := c.Get(c.Context(), client.ObjectKey{Namespace: c.ns, Name: name}, vm); err != nil {
		c.Fatal(err)
	}
	return vm
}

// guests stand in for operator and agents in a namespace: each VirtualMachine gets a pod on a node and a status of its spec.
type guests struct {
	*cluster
	mu     sync.Mutex
	graces map[string]int64 // with which pods were deleted
}

func (c *cluster) guests() *guests {
	g := &guests{cluster: c, graces: map[string]int64{}}
	ctx, cancel := context.WithCancel(c.Context())
	ended := make(chan struct{})
	c.Cleanup(func() { cancel(); <-ended })
	vms, err := c.Watch(ctx, &v1alpha1.VirtualMachineList{}, client.InNamespace(c.ns))
	if err != nil {
		c.Fatal(err)
	}
	pods, err := c.Watch(ctx, &corev1.PodList{}, client.InNamespace(c.ns))
	if err != nil {
		c.Fatal(err)
	}
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case event := <-vms.ResultChan():
				if vm, is := event.Object.(*v1alpha1.VirtualMachine); is {
					g.reconcile(ctx, vm.Name)
				}
			case event := <-pods.ResultChan():
				if pod, is := event.Object.(*corev1.Pod); is {
					g.reconcile(ctx, pod.Name)
				}
			}
		}
	}()
	return g
}

func (g *guests) reconcile(ctx context.Context, name string) {
	err := g.try(ctx, name)
	if err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
		g.Errorf("standing in for %s: %v", name, err)
	}
}

func (g *guests) try(ctx context.Context, name string) error {
	vm, pod := &v1alpha1.VirtualMachine{}, &corev1.Pod{}
	if err := g.Get(ctx, client.ObjectKey{Namespace: g.ns, Name: name}, vm); err != nil {
		return err
	}
	err := g.Get(ctx, client.ObjectKey{Namespace: g.ns, Name: name}, pod)
	hasPod := err == nil
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	wantsPod := vm.Spec.State != v1alpha1.StateStopped && vm.Status.Ended == nil
	if hasPod && pod.DeletionTimestamp != nil {
		g.mu.Lock()
		g.graces[name] = *pod.DeletionGracePeriodSeconds
		g.mu.Unlock()
		return g.Delete(ctx, pod, client.GracePeriodSeconds(0))
	}
	if hasPod && (!wantsPod || pod.Annotations["restartedAt"] != vm.Spec.RestartedAt) {
		if vm.Labels["slow"] != "" {
			return nil // somebody else deletes it
		}
		return g.Delete(ctx, pod)
	}
	if !hasPod && wantsPod {
		pod = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: g.ns, Name: name, Labels: map[string]string{berth.LabelVM: name}, Annotations: map[string]string{"restartedAt": vm.Spec.RestartedAt}},
			Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: berth.Container, Image: "i"}}},
		}
		if err := g.Create(ctx, pod); err != nil {
			return err
		}
		hasPod = true
	}
	before := vm.DeepCopy()
	vm.Status.ObservedGeneration = vm.Generation
	vm.Status.Berth, vm.Status.Phase = nil, v1alpha1.PhaseStopped
	condition := is(v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonNotRunning, "")
	if hasPod {
		vm.Status.Berth, vm.Status.Phase = &v1alpha1.BerthReference{PodName: name, PodUID: pod.UID}, v1alpha1.PhaseRunning
		condition = is(v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonStarted, "")
		if vm.Spec.State == v1alpha1.StatePaused {
			condition = is(v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonPaused, "")
		}
	}
	condition.ObservedGeneration = vm.Generation
	meta.SetStatusCondition(&vm.Status.Conditions, condition)
	return g.Status().Patch(ctx, vm, client.MergeFrom(before))
}

func testNames(c *cluster) {
	c.create(c.vm("web-1", nil), c.vm("web-2", nil), c.vm("db", nil), c.vm("db-2", nil))
	c.fails(1, "inspect we", "we is the beginning of web-1, web-2: write more of it")
	c.prints("inspect web-1 -o jsonpath={.items[0].metadata.name}", "^web-1$")
	c.prints("inspect db -o jsonpath={.items[0].metadata.name}", "^db$") // a whole name is itself
	c.prints("inspect vm/web-2 virtualmachine.berth.dev/db -o jsonpath={.items[*].metadata.name}", "^web-2 db$")
	c.prints("inspect db-2 db- db-2 -o jsonpath={.items[*].metadata.name}", "^db-2$") // none twice
	c.fails(1, "inspect pod/web-1", "pod/web-1 is no VirtualMachine's name: write NAME or vm/NAME")
	c.fails(1, "inspect mail", "virtualmachine.berth.dev/mail is not in namespace "+c.ns)
	c.prints("__complete stop web-1 we", "(?m)^web-2$")
	if out := c.prints("__complete attach web-1 we"); strings.Contains(out, "web-2") {
		c.Errorf("attach takes one name and completes two:\n%s", out)
	}
}

func testPS(c *cluster) {
	when := metav1.NewTime(time.Now().Add(-5 * time.Minute))
	c.create(
		c.vm("up", func(vm *v1alpha1.VirtualMachine) {
			vm.Labels = map[string]string{"app": "web"}
			running := is(v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonStarted, "")
			running.LastTransitionTime = when
			vm.Status.Phase, vm.Status.Conditions = v1alpha1.PhaseRunning, []metav1.Condition{running}
			vm.Status.NodeName, vm.Status.Addresses, vm.Status.VCPUs = "n1", []string{"10.1.2.3"}, 2
			vm.Status.Disks = []v1alpha1.DiskStatus{{Name: "root", Size: new(resource.MustParse("20Gi"))}}
			vm.Status.Image = "registry.example.org/d:1"
			vm.Status.Guest = &v1alpha1.GuestInfo{Tools: "v1\x1b[31m"}
		}),
		c.vm("waits", func(vm *v1alpha1.VirtualMachine) {
			vm.Status.Phase = v1alpha1.PhaseWaiting
			vm.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonImageNotFound, "")}
		}),
		c.vm("done", func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.RestartPolicy = v1alpha1.RestartNever
			vm.Status.Phase = v1alpha1.PhaseFailed
			vm.Status.Ended = &v1alpha1.Ended{Phase: v1alpha1.PhaseFailed, Reason: v1alpha1.ReasonPoweredOff}
			vm.Status.LastExit = &v1alpha1.LastExit{Reason: v1alpha1.ReasonPoweredOff, ExitCode: 3, Time: when}
		}),
		c.vm("off", func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.State, vm.Status.Phase = v1alpha1.StateStopped, v1alpha1.PhaseStopped
		}),
	)
	out := c.prints("ps", `NAME +STATUS +UP +EXITED +NODE +IP +CPU +MEMORY +SIZE +AGE`, `up +Running +5m\d*s? +- +n1 +10\.1\.2\.3 +2 +64Mi +20Gi`, `waits +Waiting \(ImageNotFound\)`)
	if strings.Contains(out, "done") || strings.Contains(out, "off") {
		c.Errorf("ps lists what has no guest:\n%s", out)
	}
	c.prints("ps -a", `done +Failed +- +3 \(5m\d*s? ago\)`, `off +Stopped`)
	c.prints("ps -a -o wide", `IMAGE +RESTARTS +TOOLS`, `registry\.example\.org/d:1 +0 +v1\?\[31m`)
	c.prints("ps -aq", "^done\noff\nup\nwaits\n$")
	c.prints("ps -l app=web -o name", "^virtualmachine.berth.dev/up\n$")
	c.prints("ps -A", `NAMESPACE +NAME`, c.ns+` +up `)
	c.prints("ps -a -o jsonpath={.items[*].metadata.name}", "^done off up waits$")
	c.prints("ps -o json", `"kind": "VirtualMachineList"`)
}

func testStateVerbs(c *cluster) {
	g := c.guests()
	c.create(c.vm("a", nil), c.vm("b", nil))
	c.prints("wait a b --for=condition=Running", "virtualmachine.berth.dev/a condition met", "virtualmachine.berth.dev/b condition met")
	c.prints("pause a", "^virtualmachine.berth.dev/a paused\n$")
	c.fails(1, "unpause b", "virtualmachine.berth.dev/b is not paused: its state is Running")
	c.prints("unpause a -o name", "^virtualmachine.berth.dev/a\n$")
	first := c.get("a").Status.Berth.PodUID
	c.prints("restart a b", "a restarted\nvirtualmachine.berth.dev/b restarted")
	if second := c.get("a").Status.Berth.PodUID; second == first {
		c.Error("restart does not wait for a new pod")
	}
	c.prints("stop a b", "a stopped\nvirtualmachine.berth.dev/b stopped")
	if got := c.get("a"); got.Spec.State != v1alpha1.StateStopped || got.Status.Berth != nil {
		c.Errorf("after stop: %s, %v", got.Spec.State, got.Status.Berth)
	}
	c.fails(1, "pause a", "virtualmachine.berth.dev/a is stopped: kubectl vm start a")
	c.prints("start a b -o jsonpath={.spec.state}", "^RunningRunning$")
	// of several, one that fails stops no other
	c.fails(1, "stop missing a", "virtualmachine.berth.dev/missing is not in namespace")
	if got := c.get("a"); got.Spec.State != v1alpha1.StateStopped {
		c.Errorf("a is %s", got.Spec.State)
	}

	slow := c.vm("slow", func(vm *v1alpha1.VirtualMachine) { vm.Labels = map[string]string{"slow": "yes"} })
	c.create(slow)
	for verb, grace := range map[string]int64{"kill slow": 1, "stop -t 5 slow": 5, "stop -t 0 slow": 1} {
		c.prints("start slow")
		c.prints(verb, "slow (killed|stopped)")
		g.mu.Lock()
		if g.graces["slow"] != grace {
			c.Errorf("%s: the pod's grace is %d, not %d", verb, g.graces["slow"], grace)
		}
		g.mu.Unlock()
	}
	if got := c.get("slow").Spec.TerminationGracePeriodSeconds; *got != 60 {
		c.Errorf("stop -t changes the spec: %d", *got)
	}
	c.prints("start slow")
	c.fails(1, "stop slow --timeout 100ms", "virtualmachine.berth.dev/slow is not stopped after 100ms: Running: kubectl vm why slow")
	c.prints("stop slow --wait=false", "slow stopped")

	// A guest that has ended is run once more.
	ended := c.vm("ended", func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.RestartPolicy = v1alpha1.RestartNever
		vm.Status.Ended = &v1alpha1.Ended{Phase: v1alpha1.PhaseSucceeded, Reason: v1alpha1.ReasonPoweredOff}
	})
	c.create(ended)
	c.prints("start ended --wait=false", "ended started")
	if c.get("ended").Spec.RestartedAt == "" {
		c.Error("start of an ended guest changes no restartedAt")
	}
}

// testStalled: nothing waits for what nobody does.
func testStalled(c *cluster) {
	c.create(c.vm("web", func(vm *v1alpha1.VirtualMachine) {
		stalled := is(v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonImageNotFound, "no such \x1b[31mimage")
		stalled.ObservedGeneration = 99
		vm.Status.Conditions = []metav1.Condition{stalled}
	}))
	c.fails(1, "start web", `virtualmachine.berth.dev/web: ImageNotFound: no such \?\[31mimage Correct the reference, or push the image\.`)
}

func testRM(c *cluster) {
	c.guests()
	c.create(c.vm("up", nil), c.vm("off", func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StateStopped }))
	c.prints("wait up --for=condition=Running")
	c.fails(1, "rm up", "virtualmachine.berth.dev/up has a guest: stop it first, or kill and delete it by rm -f")
	c.prints("rm off", "^virtualmachine.berth.dev/off deleted\n$")
	c.prints("rm -f up", "^virtualmachine.berth.dev/up deleted\n$")
	c.prints("ps -aq", "^$")
}

func testRun(c *cluster) {
	key := filepath.Join(c.TempDir(), "id.pub")
	data := filepath.Join(c.TempDir(), "user-data")
	for file, text := range map[string]string{key: "ssh-ed25519 AAAA me\n", data: "#cloud-config\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			c.Fatal(err)
		}
	}
	c.prints("run -d --name web --cpus 2 -m 128Mi --size 3Gi -p 8080:80 -p 53/udp -l app=web --ssh-key "+key+" --user-data "+data+
		" --display=Virtio --ttl 5 --restart OnFailure registry.example.org/d:1", "^virtualmachine.berth.dev/web created\n$")
	vm := c.get("web")
	s := vm.Spec
	if s.CPU.Cores != 2 || s.Memory.Size.String() != "128Mi" || s.Disks[0].Size.String() != "3Gi" || s.Disks[0].Image != "registry.example.org/d:1" ||
		len(s.SSHAuthorizedKeys) != 1 || *s.CloudInit.UserData != "#cloud-config\n" || s.Display.Type != v1alpha1.DisplayVirtio ||
		*s.TTLSecondsAfterFinished != 5 || s.RestartPolicy != v1alpha1.RestartOnFailure || vm.Labels["app"] != "web" {
		c.Errorf("the spec is %+v", s)
	}
	service := &corev1.Service{}
	if err := c.Get(c.Context(), client.ObjectKey{Namespace: c.ns, Name: "web"}, service); err != nil {
		c.Fatal(err)
	}
	if owner := metav1.GetControllerOf(service); owner == nil || owner.UID != vm.UID || service.Spec.Selector[berth.LabelVM] != "web" || len(service.Spec.Ports) != 2 {
		c.Errorf("the Service is %+v", service)
	}

	c.prints("run -d --rm --kernel registry.example.org/k:1 --name job -- exit=3", "job created")
	if s := c.get("job").Spec; s.RestartPolicy != v1alpha1.RestartNever || *s.TTLSecondsAfterFinished != 60 || s.Kernel.CommandLine != "console=ttyS0 -- exit=3" || len(s.Disks) != 0 {
		c.Errorf("the spec is %+v", s)
	}
	c.prints("run --rm --dry-run=server -o jsonpath={.spec.startupProbe} registry.example.org/d:1 -- true", `"command":\["test","-e","/run/berth-lifeline"\]`, `"failureThreshold":180,"periodSeconds":5`)
	c.prints("run -d registry.example.org/x/tiny:1", `^virtualmachine.berth.dev/tiny-[a-z0-9]{5} created\n$`)
	c.prints("run --dry-run=client -o yaml --name dry registry.example.org/d:1", "kind: VirtualMachine", "restartPolicy: Never")
	c.prints("run --dry-run=server -o jsonpath={.spec.terminationGracePeriodSeconds} --name dry registry.example.org/d:1", "^60$")
	if err := c.Get(c.Context(), client.ObjectKey{Namespace: c.ns, Name: "dry"}, vm); !apierrors.IsNotFound(err) {
		c.Errorf("a dry run creates: %v", err)
	}

	for _, refused := range [][2]string{
		{"run", "requires at least 1 arg"},
		{"run a b", "b is no flag and no image: write the guest's command after --"},
		{"run --bogus a", "unknown flag: --bogus"},
		{"run -i a", "give -i and -t together"},
		{"run -d -it a", "-d leaves the guest at once"},
		{"run -d a -- true", "-d leaves the guest at once"},
		{"run --rm --restart Always a", "--rm and --restart Always contradict each other"},
		{"run -m much a", "-m much is no size: write one such as 2Gi"},
		{"run --size big a", "--size big is no size"},
		{"run -p x a", "-p x is no port"},
		{"run --append x a", "--append is for --kernel"},
		{"run --kernel --size 1Gi a", "--size is a disk's"},
		{"run --user-data /nowhere a", "--user-data: open /nowhere"},
		{"run --dry-run=perhaps a", "none of none, client and server"},
		{"run -d --name bad HTTPS://x", "image is no image reference"},
		{"run -d --name bad -m 1Mi a", "memory.size must be a quantity from 16Mi"},
		{"run --pull sometimes a", "none of always, missing and never"},
		{"run -d --name bad --restart Sometimes a", `Unsupported value: "Sometimes"`},
		{"run -d --name bad --display=Big a", `Unsupported value: "Big"`},
		{"run -d --name bad --restart Always --ttl 5 a", "a guest that is always restarted never finishes"},
		{"run -d --name web a", `"web" already exists`},
		{"run -it --rm --name bad a", "this is no terminal"},
	} {
		c.fails(125, refused[0], regexp.QuoteMeta(refused[1]))
	}
	// A Service that cannot be takes the VirtualMachine with it.
	c.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "taken"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}})
	c.fails(125, "run -d --name taken -p 80 a", `"taken" already exists`)
	c.prints("ps -aq", "^job\ntiny-[a-z0-9]{5}\nweb\n$")
}

// testRunToTheEnd follows guests that end in each way. Logs need a kubelet: the journeys in the lab have them.
func testRunToTheEnd(c *cluster) {
	s := &session{api: c.WithWatch, namespace: c.ns}
	for name, t := range map[string]struct {
		status func(*v1alpha1.VirtualMachineStatus)
		want   string
	}{
		"ok": {func(s *v1alpha1.VirtualMachineStatus) {
			s.Ended.Phase, s.LastExit = v1alpha1.PhaseSucceeded, &v1alpha1.LastExit{Reason: "PoweredOff"}
		}, "<nil>"},
		"three": {func(s *v1alpha1.VirtualMachineStatus) {
			s.LastExit = &v1alpha1.LastExit{Reason: "PoweredOff", ExitCode: 3}
		}, "exit code 3"},
		"panic": {func(s *v1alpha1.VirtualMachineStatus) {
			s.LastExit = &v1alpha1.LastExit{Reason: "GuestPanicked", ExitCode: 134}
		}, "exit code 134"},
		"silent": {func(s *v1alpha1.VirtualMachineStatus) {}, "exit code 137"},
		"stalls": {func(s *v1alpha1.VirtualMachineStatus) {
			s.Ended = nil
			s.Conditions = []metav1.Condition{is(v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonImageNotFound, "none")}
		}, "virtualmachine.berth.dev/stalls: ImageNotFound: none Correct the reference, or push the image."},
	} {
		vm := c.vm(name, func(vm *v1alpha1.VirtualMachine) { vm.Spec.RestartPolicy = v1alpha1.RestartNever })
		c.create(vm)
		got, before := make(chan error, 1), vm.DeepCopy() // Patch below writes to vm
		go func() { got <- s.end(c.Context(), before) }()
		vm.Status.Ended = &v1alpha1.Ended{Phase: v1alpha1.PhaseFailed, Reason: v1alpha1.ReasonPodDeleted}
		t.status(&vm.Status)
		if vm.Status.LastExit != nil {
			vm.Status.LastExit.Time = metav1.Now()
		}
		if err := c.Status().Patch(c.Context(), vm, client.MergeFrom(before)); err != nil {
			c.Fatal(err)
		}
		if err := <-got; fmt.Sprint(err) != t.want {
			c.Errorf("%s ends with %v, not %s", name, err, t.want)
		}
	}
	vm := c.vm("gone", nil)
	c.create(vm)
	got := make(chan error, 1)
	go func() { got <- s.end(c.Context(), vm) }()
	if err := c.Delete(c.Context(), vm); err != nil {
		c.Fatal(err)
	}
	if err := <-got; fmt.Sprint(err) != "exit code 137" {
		c.Errorf("one that is deleted ends with %v", err)
	}
}

// testHangUp: whoever closes the terminal has the guest deleted, as by Ctrl-C.
func testHangUp(c *cluster) {
	created, err := c.Watch(c.Context(), &v1alpha1.VirtualMachineList{}, client.InNamespace(c.ns))
	if err != nil {
		c.Fatal(err)
	}
	defer created.Stop()
	ended := make(chan int, 1)
	go func() {
		_, _, code := c.run("run", "--rm", "--name", "web", "registry.example.org/d:1", "--", "true")
		ended <- code
	}()
	<-created.ResultChan()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		c.Fatal(err)
	}
	if code := <-ended; code != exitInterrupted {
		c.Errorf("it ends with %d", code)
	}
	c.prints("ps -aq", "^$")
}

func testInspect(c *cluster) {
	c.guests()
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n-inspect"}}
	host.Status.QEMUVersion = "7.2.0"
	c.createHost(host)
	c.create(c.vm("web", nil))
	c.prints("wait web --for=condition=Running")
	vm := c.get("web")
	before := vm.DeepCopy()
	vm.Status.NodeName = "n-inspect"
	if err := c.Status().Patch(c.Context(), vm, client.MergeFrom(before)); err != nil {
		c.Fatal(err)
	}
	c.event(vm, "Started", "it runs")
	c.prints("inspect web -o jsonpath={.items[*].kind}", "^VirtualMachine Pod VirtualMachineHost Event$")
	out := c.prints("inspect web", "apiVersion: v1\nitems:", "qemuVersion: 7.2.0", "message: it runs", "kind: List")
	if strings.Contains(out, "managedFields") {
		c.Error("inspect shows managedFields")
	}
}

func (c *cluster) createHost(host *v1alpha1.VirtualMachineHost) {
	c.Helper()
	status := host.Status
	if err := c.Create(c.Context(), host); err != nil {
		c.Fatal(err)
	}
	host.Status = status
	if err := c.Status().Update(c.Context(), host); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = c.Delete(context.Background(), host) })
}

func (c *cluster) event(about client.Object, reason, message string) {
	c.Helper()
	c.create(&corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "e-"},
		InvolvedObject: corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualMachine", Namespace: c.ns, Name: about.GetName(), UID: about.GetUID()},
		Reason:         reason, Message: message, Type: corev1.EventTypeNormal, LastTimestamp: metav1.Now(),
	})
}

func testWhy(c *cluster) {
	c.create(c.vm("web", func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Phase, vm.Status.ObservedGeneration = v1alpha1.PhaseWaiting, 1
		vm.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionDisksReady, metav1.ConditionFalse, v1alpha1.ReasonImageNotFound, "no \x1b[2Jd:1")}
	}))
	c.prints("why we", "web in "+c.ns+": Waiting", `DisksReady is False: ImageNotFound`, `no \?\[2Jd:1`, "next: Correct the reference, or push the image")
	c.fails(1, "why", "accepts 1 arg")
}

func testWaitAndEvents(c *cluster) {
	c.create(c.vm("web-1", func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")}
		vm.Status.Phase = v1alpha1.PhaseRunning
	}))
	vm := c.get("web-1")
	c.event(vm, "Started", "it runs")
	c.event(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, "Other", "not it")
	c.prints("wait web", "^virtualmachine.berth.dev/web-1 condition met\n$")
	c.prints("wait web --for=jsonpath={.status.phase}=Running", "condition met")
	c.prints("wait gone --for=delete", "")
	c.fails(1, "wait web --for=condition=Stalled --timeout=0", "timed out|condition")
	c.fails(1, "wait gone", "gone is not in namespace")
	if out := c.prints("events web", "Started +VirtualMachine/web-1 +it runs"); strings.Contains(out, "Other") {
		c.Errorf("events shows others':\n%s", out)
	}
	c.prints("events", "Other")
	c.fails(1, "events a b", "events takes one name")
}

func testImagesAndSystem(c *cluster) {
	digest := "sha256:" + strings.Repeat("a", 64)
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n-images"}}
	host.Status.Images = []v1alpha1.HostImage{{Digest: digest, Size: new(resource.MustParse("100Mi"))}, {Digest: "sha256:" + strings.Repeat("b", 64), Size: new(resource.MustParse("50Mi"))}}
	host.Status.StrayDisks, host.Status.StrayDiskSize = []string{"x"}, new(resource.MustParse("7Mi"))
	c.createHost(host)
	c.create(c.vm("web", func(vm *v1alpha1.VirtualMachine) {
		vm.Status.NodeName = "n-images"
		vm.Status.Disks = []v1alpha1.DiskStatus{{Name: "root", Image: "registry.example.org/d:1", ImageDigest: digest, Size: new(resource.MustParse("20Gi"))}}
	}))
	c.prints("images", `registry.example.org/d:1 +`+digest+` +100Mi +n-images +`+c.ns+`/web`, `- +sha256:b+ +50Mi +n-images +-`)
	c.prints("system df", `n-images +images +2 +1 +150Mi +50Mi of no`, `n-images +disks +1 +1 +20Gi`, `n-images +stray disks +1 +0 +7Mi`)
}

func testDoctor(c *cluster) {
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n-doctor"}}
	host.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionHostReady, metav1.ConditionFalse, v1alpha1.ReasonKVMUnavailable, "no /dev/kvm")}
	host.Status.Problems = []v1alpha1.HostProblem{{Name: "PodPidsLimit", Message: "set podPidsLimit"}}
	c.createHost(host)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("1")}}}
	quota.Status.Hard, quota.Status.Used = quota.Spec.Hard, corev1.ResourceList{"pods": resource.MustParse("1")}
	c.create(quota)
	c.create(c.vm("web", func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionDisksReady, metav1.ConditionFalse, v1alpha1.ReasonImageNotFound, "")}
	}))
	out, errOut, code := c.run("doctor")
	if code != 1 || errOut != "" {
		c.Errorf("doctor ends with %d: %s", code, errOut)
	}
	for _, want := range []string{
		"ok     CustomResourceDefinition virtualmachines.berth.dev", "WRONG  there is no berth-operator: install Berth's chart", "WRONG  there is no berth-agent: install Berth's chart",
		"WRONG  host n-doctor is not Ready: KVMUnavailable: no /dev/kvm Enable virtualisation", "WRONG  host n-doctor: PodPidsLimit: set podPidsLimit",
		"WRONG  ValidatingAdmissionPolicyBinding berth-berths is missing", `ok     namespace n-doctor: its Pod Security level (none) lets`, "WRONG  quota small: 1 of 1 pods are used",
		"WRONG  virtualmachine.berth.dev/web: ImageNotFound: kubectl vm why web",
	} {
		if !strings.Contains(out, want) {
			c.Errorf("doctor does not print %q:\n%s", want, out)
		}
	}
	testVersions(c)
	// Who may look at nothing is told so, and nothing is called wrong for that.
	out, _, code = c.run("doctor", "--as", "nobody")
	if code != 0 || !strings.Contains(out, ": an administrator can") || strings.Contains(out, "WRONG") {
		c.Errorf("for nobody doctor ends with %d:\n%s", code, out)
	}
}

// testVersions: an operator that is newer than this program and one of two agents.
func testVersions(c *cluster) {
	clients := kubernetes.NewForConfigOrDie(c.config)
	labels := map[string]string{"app.kubernetes.io/part-of": "berth"}
	operator := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "operator", Namespace: c.ns, Labels: labels}}
	operator.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	operator.Spec.Template.Labels = labels
	operator.Spec.Template.Spec.Containers = []corev1.Container{{Name: "operator", Image: "localhost:5000/berth-operator:0.2.1@sha256:" + zeros}}
	if _, err := clients.AppsV1().Deployments(c.ns).Create(c.Context(), operator, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	for name, agent := range map[string]string{"n-same": "v0.2.1", "n-older": "0.2.0", "n-build": "0123abcd"} {
		host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
		host.Status.AgentVersion = agent
		c.createHost(host)
	}
	for own, isWrong := range map[string]bool{"v0.2.7": false, "v0.1.0": true, "v0.1.1-0.20260102030405-0123456789ab": false, "(devel)": false} {
		var out bytes.Buffer
		p := &patient{session: &session{IOStreams: genericiooptions.IOStreams{Out: &out}, api: c.WithWatch, clients: clients, namespace: c.ns}, own: own}
		if err := errors.Join(p.workloads(c.Context()), p.nodes(c.Context())); err != nil {
			c.Fatal(err)
		}
		if strings.Contains(out.String(), "WRONG  this kubectl-vm is of version "+own+", the operator of 0.2.1: install") != isWrong {
			c.Errorf("of itself, which is %s, doctor says:\n%s", own, &out)
		}
		if !strings.Contains(out.String(), "WRONG  host n-older: its agent is of version 0.2.0, the operator of 0.2.1: wait for the rollout") || strings.Contains(out.String(), "host n-same: its agent is of version v0.2.1, the operator") {
			c.Errorf("of the agents doctor says:\n%s", &out)
		}
	}
	if err := clients.AppsV1().Deployments(c.ns).Delete(c.Context(), operator.Name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
}

func testStats(c *cluster) {
	c.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{berth.LabelVM: "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: berth.Container, Image: "i", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
		}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	})
	out, errOut, code := c.run("stats")
	if code != 0 || !strings.Contains(errOut, "Usage is not known: this cluster has no metrics API (install metrics-server)") || !regexp.MustCompile(`web +- +100m +- +128Mi`).MatchString(out) {
		c.Errorf("stats ends with %d: %s\n%s", code, errOut, out)
	}
}

func testVersion(c *cluster) {
	c.prints("version --client", `^kubectl-vm +\S+, API berth.dev/v1alpha1\n$`)
	c.prints("version", `Kubernetes +v1\.`)
}

func testVerbsWithoutAGuest(c *cluster) {
	c.create(c.vm("off", func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StateStopped }), c.vm("soon", nil))
	for args, code := range map[string]int{
		"attach %s": 1, "console %s": 1, "logs %s": 1, "exec %s -- true": 125, "top %s": 1, "cp f %s:/": 1, "ssh %s": 1, "port-forward %s 80": 1,
		"reset %s": 1, "nmi %s": 1, "vnc %s": 1, "screenshot %s x.png": 1,
	} {
		c.fails(code, fmt.Sprintf(args, "off"), "virtualmachine.berth.dev/off has no guest: kubectl vm start off")
		c.fails(code, fmt.Sprintf(args, "soon"), "virtualmachine.berth.dev/soon has no guest yet: kubectl vm why soon")
	}
	c.fails(1, "cp a b", "one of SOURCE and DESTINATION is NAME:PATH")
	c.fails(1, "cp x:a y:b", "one of SOURCE and DESTINATION is NAME:PATH")
	c.fails(125, "exec -d -i off -- true", "none of the others can be")
}

func testNoScreen(c *cluster) {
	c.guests()
	c.create(c.vm("web", nil))
	c.prints("wait web --for=condition=Running")
	c.fails(1, "screenshot web x.png", `virtualmachine.berth.dev/web has no screen: set spec.display \(\{type: VGA\}\), and kubectl vm restart web`)
	c.fails(1, "vnc web", "has no screen")
	c.fails(1, "attach web", "this is no terminal: kubectl vm logs -f shows a console without one")
}

// testWithoutCRDs: another kind's name stands in for a cluster that has none of ours.
func testWithoutCRDs(c *cluster) {
	missing := apierrors.NewGenericServerResponse(404, "get", v1alpha1.GroupVersion.WithResource("virtualmachines").GroupResource(), "", "", 0, true)
	if got := explained(missing).Error(); !strings.HasPrefix(got, "this cluster has no VirtualMachines: install Berth's chart") {
		c.Errorf("it is explained by %q", got)
	}
	absent := apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("virtualmachines").GroupResource(), "web")
	if !errors.Is(explained(absent), absent) {
		c.Error("one that is missing is taken for all that are")
	}
}
