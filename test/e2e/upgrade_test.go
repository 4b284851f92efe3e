package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestUpgrade upgrades Berth from the commit in test/upgrade/BASE to the tree, back, and again, under guests of all
// kinds: the operator comes first and the CRDs last the first time, and CRDs first the second time. Neither a guest nor a reader of its status may
// notice. What one version made, the other handles.
func TestUpgrade(t *testing.T) {
	u := &upgrade{lab: startAlone(t), uids: map[string]string{}, consoles: map[string]*console{}}
	t.Cleanup(u.reinstall)
	base, tree := u.older(), u.installed()
	u.helmUpgrade(base, base.chart, "--wait", "--timeout=2m")
	u.rolledOut(base)
	revision := u.revision()
	u.apply(services + "---" + userData)
	u.begin(kinds()...)
	volumes := u.volumes()
	u.attached = u.attach(untouched)

	u.stage("operator-first", func() { u.upgradeOperator(tree) })
	u.stage("programs-first", func() { u.upgrade(tree, withoutCRDs(t, tree.chart)) })
	u.stage("crds-last", func() { u.upgrade(tree, tree.chart) })
	u.treat(base, tree)
	u.stage("rollback", func() {
		u.helm("rollback", "berth", revision, "--wait", "--timeout=2m")
		u.rolledOut(base)
	})
	u.restart(tree, "disks") // an agent serves a shim that is newer
	u.stage("crds-first", func() {
		u.kubectl("", "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(env.Root(), "config", "crd"))
	})
	u.stage("programs-last", func() { u.upgrade(tree, tree.chart) })

	u.kubectl("", "delete", "vm", "--all", "--wait=false")
	for name, uid := range u.uids {
		u.vm(name, "to be gone", isGone)
		nothingLeft(u.lab, uid)
	}
	u.unused(volumes...)
	if diff := gocmp.Diff(volumes, u.volumes()); diff != "" {
		t.Errorf("claims had volumes and have (-had +have):\n%s", diff)
	}
}

// upgrade is a test's guests, and what of them is watched through all of it.
type upgrade struct {
	*lab
	uids     map[string]string   // of all
	consoles map[string]*console // of those that run, by kubectl logs -f
	attached *console            // of the untouched one, from beginning to end
	words    int                 // of memoryWords, that say now what memory they have
}

// product is Berth as it is installed.
type product struct{ chart, tag, version string }

// installed is the tree, as make lab-up has installed it.
func (u *upgrade) installed() product {
	u.Helper()
	var values struct{ Image struct{ Tag string } }
	if err := json.Unmarshal([]byte(u.helm("get", "values", "berth", "-o", "json")), &values); err != nil {
		u.Fatalf("reading the release's values: %v", err)
	}
	var host v1alpha1.VirtualMachineHost
	if err := u.Get(u.Context(), client.ObjectKey{Name: nodes(u)[0]}, &host); err != nil {
		u.Fatal(err)
	}
	return product{chart: filepath.Join(env.Root(), "charts", "berth"), tag: values.Image.Tag, version: host.Status.AgentVersion}
}

// older is Berth as it was at the commit that upgrades begin with.
func (u *upgrade) older() product {
	u.Helper()
	commit, err := os.ReadFile(filepath.Join(env.Root(), "test", "upgrade", "BASE"))
	if err != nil {
		u.Fatal(err)
	}
	base := product{version: strings.TrimSpace(string(commit))}
	release := u.build("release", base.version)
	base.chart, base.tag = filepath.Join(release["LAB_RELEASE"], "charts", "berth"), release["LAB_RELEASE_TAG"]
	return base
}

// withoutCRDs is a copy of a chart, as for administrators who have something else than Helm apply CRDs.
func withoutCRDs(t *testing.T, chart string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "berth")
	if err := os.CopyFS(dir, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "templates", "crds.yaml")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// upgrade does what docs/upgrade.md says.
func (u *upgrade) upgrade(to product, chart string) {
	u.Helper()
	u.helmUpgrade(to, chart, "--wait", "--timeout=2m")
	u.rolledOut(to)
}

// upgradeOperator upgrades all but the agents, which follow a few at a time: both are at work for a while.
func (u *upgrade) upgradeOperator(to product) {
	u.Helper()
	var release struct{ Manifest string }
	if err := json.Unmarshal([]byte(u.helmUpgrade(to, withoutCRDs(u.T, to.chart), "--dry-run=server", "-o", "json")), &release); err != nil {
		u.Fatalf("reading what helm would install: %v", err)
	}
	all := strings.Split(release.Manifest, "\n---\n")
	others := slices.DeleteFunc(slices.Clone(all), func(manifest string) bool { return strings.Contains(manifest, "\nkind: DaemonSet\n") })
	if len(others) != len(all)-1 {
		u.Fatalf("the chart has %d DaemonSets, want the agents'", len(all)-len(others))
	}
	manifest := strings.Join(others, "\n---\n")
	u.kubectl(manifest, "-n", "berth-system", "apply", "--server-side", "--force-conflicts", "--field-manager=helm", "-f", "-")
	u.kubectl(manifest, "-n", "berth-system", "annotate", "--overwrite", "-f", "-", // helm takes what is new for its own then
		"meta.helm.sh/release-name=berth", "meta.helm.sh/release-namespace=berth-system")
	u.leads(to)
}

func (u *upgrade) helmUpgrade(to product, chart string, more ...string) string {
	u.Helper()
	return u.helm(append([]string{"upgrade", "berth", chart, "--reset-then-reuse-values", "--set=image.tag=" + to.tag}, more...)...)
}

func (u *upgrade) helm(args ...string) string {
	u.Helper()
	var out, errs bytes.Buffer
	helm := exec.CommandContext(u.Context(), "helm", append(args, "--namespace=berth-system")...)
	helm.Stdout, helm.Stderr = &out, &errs
	if err := helm.Run(); err != nil {
		u.Fatalf("helm %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// revision is the release's number.
func (u *upgrade) revision() string {
	u.Helper()
	var release struct{ Version int }
	if err := json.Unmarshal([]byte(u.helm("status", "berth", "-o", "json")), &release); err != nil {
		u.Fatalf("reading the release: %v", err)
	}
	return strconv.Itoa(release.Version)
}

// rolledOut waits until the operator that leads and all agents are a product's.
func (u *upgrade) rolledOut(p product) {
	u.Helper()
	u.leads(p)
	for _, node := range nodes(u) {
		u.host(node, "to be told of by an agent "+p.version, func(h *v1alpha1.VirtualMachineHost) bool { return h.Status.AgentVersion == p.version })
	}
}

// leads waits until the operator that leads is a product's.
func (u *upgrade) leads(p product) {
	u.Helper()
	operator := victim{u.lab, "berth-operator", ""}
	env.Eventually(u, "an operator of "+p.tag+" to lead", func() bool {
		leader := operator.leader()
		return slices.ContainsFunc(operator.pods(), func(pod corev1.Pod) bool { return pod.Name == leader && isOfTag(&pod, p) })
	})
}

// isOfTag: a pod's image, the shim's in a berth, is of a product.
func isOfTag(pod *corev1.Pod, p product) bool {
	return strings.HasSuffix(pod.Spec.Containers[0].Image, ":"+p.tag)
}

// stage changes Berth. Once what runs then has looked at every guest, all must be as it was; and it can start a guest,
// which is one of them from then on.
func (u *upgrade) stage(name string, change func()) {
	u.Helper()
	u.Log(name)
	u.rephrase()
	before, told, page, volumes := u.look(), u.events(), u.page(), u.volumes()
	change()
	u.rephrase()
	if diff := gocmp.Diff(told, u.events()); diff != "" {
		u.Errorf("%s: Events about guests:\n%s", name, diff)
	}
	for guest, now := range u.look() {
		if diff := gocmp.Diff(before[guest].in(now), now.in(before[guest])); diff != "" {
			u.Errorf("%s: guest %s was and is:\n%s", name, guest, diff)
		}
	}
	if diff := gocmp.Diff(volumes, u.volumes()); diff != "" {
		u.Errorf("%s: claims had volumes and have (-had +have):\n%s", name, diff)
	}
	if now := u.page(); now != page {
		u.Errorf("%s: the Service led to %q and leads to %q", name, page, now)
	}
	for guest, console := range u.consoles { // "unknown", the guest says of it
		u.say(guest, name)
		console.await("tiny: unknown: " + name)
	}
	u.attached.say("still-" + name)
	u.attached.await("tiny: unknown: still-" + name)
	if u.Failed() {
		u.FailNow() // what comes next would take long to fail, and tell less
	}
	u.begin(kind{name: "since-" + name, manifest: tiny, is: isReady})
}

// memoryWords are the guests' memory in words that mean the same, and make another generation of the spec.
var memoryWords = []string{"96Mi", "98304Ki"}

// rephrase has operator and agent look at every guest, and say that they have: of a spec that says the same in other words.
func (u *upgrade) rephrase() {
	u.Helper()
	u.words = 1 - u.words
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"memory":{"size":%q}}}`, memoryWords[u.words]))
	for name := range u.uids {
		vm := &v1alpha1.VirtualMachine{}
		vm.Namespace, vm.Name = u.ns, name
		if err := u.Patch(u.Context(), vm, patch); err != nil {
			u.Fatalf("rephrasing %s: %v", name, err)
		}
	}
	for name := range u.uids {
		u.vm(name, "to be looked at", func(vm *v1alpha1.VirtualMachine) bool {
			return vm.Status.ObservedGeneration == vm.Generation && !slices.ContainsFunc(vm.Status.Conditions, func(c metav1.Condition) bool {
				return c.ObservedGeneration != vm.Generation
			})
		})
	}
}

// standing is what an upgrade leaves of a guest as it is.
type standing struct {
	Phase      v1alpha1.Phase
	Conditions map[string]string // status, reason and since when
	Pending    []v1alpha1.PendingChange
	Berth      types.UID
	Container  string
	Restarts   int32
	Addresses  []string
	LastExit   *v1alpha1.LastExit
	Disks      []v1alpha1.DiskStatus
	QEMU       []string // process and when it began
}

// in leaves out conditions that another version does not have.
func (s standing) in(other standing) standing {
	common := map[string]string{}
	for kind, c := range s.Conditions {
		if _, ok := other.Conditions[kind]; ok {
			common[kind] = c
		}
	}
	s.Conditions = common
	return s
}

// look is how every guest is.
func (u *upgrade) look() map[string]standing {
	u.Helper()
	all := map[string]standing{}
	for name := range u.uids {
		vm := u.vm(name, "to be there", func(vm *v1alpha1.VirtualMachine) bool {
			return vm != nil && (name != pending || isReady(vm) || waits(vm))
		})
		if waits(vm) { // it has not begun, and each agent asks anew for its image
			continue
		}
		s := standing{
			Phase: vm.Status.Phase, Conditions: map[string]string{}, Pending: vm.Status.PendingChanges,
			Restarts: vm.Status.Restarts, Addresses: vm.Status.Addresses, LastExit: vm.Status.LastExit, Disks: vm.Status.Disks,
		}
		if b := vm.Status.Berth; b != nil {
			s.Berth = b.PodUID
		}
		for _, c := range vm.Status.Conditions {
			s.Conditions[c.Type] = fmt.Sprintf("%s %s since %s", c.Status, c.Reason, c.LastTransitionTime.UTC())
		}
		for _, pid := range qemus(string(vm.UID)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil {
				u.Fatal(err)
			}
			_, after, _ := strings.Cut(string(stat), ") ") // its name may hold anything
			s.QEMU = append(s.QEMU, pid+" since "+strings.Fields(after)[19])
		}
		var pod corev1.Pod
		err := u.Get(u.Context(), client.ObjectKey{Namespace: u.ns, Name: name}, &pod)
		if client.IgnoreNotFound(err) != nil {
			u.Fatal(err)
		}
		for _, c := range pod.Status.ContainerStatuses {
			s.Container = cmp.Or(c.ContainerID, "none") + " of " + string(pod.UID)
		}
		all[name] = s
	}
	return all
}

// events are all that were told about guests, a line each, but for those of the guest without an image: a new agent asks
// for that image anew, and tells what came of it.
func (u *upgrade) events() []string {
	u.Helper()
	var list corev1.EventList
	if err := u.List(u.Context(), &list, client.InNamespace(u.ns)); err != nil {
		u.Fatal(err)
	}
	var lines []string
	for _, e := range list.Items {
		if e.InvolvedObject.Kind == "VirtualMachine" && e.InvolvedObject.Name != pending {
			lines = append(lines, fmt.Sprintf("%s: %s %s %q %s %+v", e.InvolvedObject.Name, e.Type, e.Reason, e.Message, e.Name, e.Series))
		}
	}
	slices.Sort(lines)
	return lines
}

// page is what the guest behind the Service says of itself: its kernel's boot, too.
func (u *upgrade) page() string {
	u.Helper()
	u.endpoint("true")
	return u.kubectl("", "exec", "client", "--", "/tools", "get", "http://tiny")
}
