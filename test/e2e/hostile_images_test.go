package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/badregistry"
	"github.com/berth-dev/berth/test/env"
)

// harm is an image that means harm, and what is told of it.
type harm struct {
	repository string // whose last word has the registry misbehave
	image      badregistry.Image
	says       string
}

// attack is a VirtualMachine with hostile images. DisksReady tells of each of them, for the reason of the last.
type attack struct {
	name   string
	harms  []harm // its disks
	spec   string // of the disks, more YAML
	boots  bool   // the one image is that of its kernel
	reason v1alpha1.Reason
}

// attacks of a namespace. The first holds its places for pulls until it is deleted, the others wait for that.
func attacks(victims badregistry.Image) []attack {
	const notDisk, size = v1alpha1.ReasonImageNotDisk, "size: 64Mi, "
	window, whiteouts := badregistry.Window(), badregistry.Whiteouts(200)
	return []attack{
		{"drips", []harm{
			{"mirror/drip", victims, " 0 MiB"},
			{"window-0/drip", window, " 128 MiB"},
			{"window-1/drip", window, "waiting for other pulls"},
			{"window-2/drip", window, "waiting for other pulls"},
		}, size, false, v1alpha1.ReasonPullingImage},
		{"mirror", []harm{{"mirror/corrupt", victims, "push the image again"}}, size, false, v1alpha1.ReasonImageDigestMismatch},
		{"whiteouts", []harm{
			{"whiteouts-0", whiteouts, "no file in /disk"},
			{"whiteouts-1", whiteouts, "no file in /disk"},
			{"whiteouts-2", whiteouts, "no file in /disk"},
			{"whiteouts-3", whiteouts, "no file in /disk"},
		}, size, false, notDisk},
		{"layouts", []harm{
			{"device", badregistry.Device(), "no regular file"},
			{"two-disks", badregistry.TwoDisks(), "more than one file in /disk"},
			{"symbolic-link", badregistry.SymbolicLink(), "no file /etc/shadow, to which its /disk/disk.img is a link"},
			{"hard-link", badregistry.HardLink(), "no file /etc/shadow, to which its /disk/disk.img is a link"},
		}, size, false, notDisk},
		{"sizes", []harm{
			{"outside", badregistry.Outside(), "no file in /disk"}, {"tebibyte", badregistry.Tebibyte(), "raise the agent's limit"},
		}, size, false, v1alpha1.ReasonImageTooLarge},
		{"formats", []harm{
			{"vmdk", badregistry.VMDK(vmdkMiB), "VMDK"},
			{"backed", badregistry.Backed(), "has a backing file: flatten it"},
			{"data-file", badregistry.DataFile(), "external data file: flatten it"},
		}, size, false, v1alpha1.ReasonImageUnsafe},
		{"kernel", []harm{{"kernel", badregistry.Boot(strings.Repeat("K", 129<<20)), "use a smaller one"}}, "", true, v1alpha1.ReasonImageTooLarge},
		{"enormous", []harm{{"enormous", badregistry.Enormous(), "a disk without size may have"}}, "", false, v1alpha1.ReasonDiskTooSmall},
	}
}

// vmdkMiB is more than sockets hold.
const vmdkMiB = 32

func (a *attack) manifest(l *lab, here string) string {
	spec := ""
	for i, h := range a.harms {
		image := imageOf(l.ns + "/" + h.repository)
		if misbehaving.Push(l.ns+"/"+h.repository, h.image); a.boots {
			spec += "  kernel: {image: " + image + "}\n"
		} else {
			spec += fmt.Sprintf("  - {name: disk-%d, %simage: %s}\n", i, a.spec, image)
		}
	}
	if !a.boots {
		spec = "  disks:\n" + spec
	}
	return fmt.Sprintf("---\napiVersion: berth.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {name: %s}\nspec:\n  memory: {size: 16Mi}\n", a.name) + spec + here
}

// told waits until DisksReady tells of each image.
func (a *attack) told(l *lab) {
	l.Helper()
	l.vm(a.name, fmt.Sprintf("to say %s of each of its images", a.reason), func(vm *v1alpha1.VirtualMachine) bool {
		if !has(vm, v1alpha1.ConditionDisksReady, metav1.ConditionFalse, a.reason) {
			return false
		}
		message := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionDisksReady).Message
		return !slices.ContainsFunc(a.harms, func(h harm) bool {
			named := a.reason == v1alpha1.ReasonPullingImage || a.reason == v1alpha1.ReasonDiskTooSmall || strings.Contains(message, l.ns+"/"+h.repository)
			return !named || !strings.Contains(message, h.says)
		})
	})
}

// TestHostileImages has a namespace full of them beside another tenant's guest on one node: that starts as if it were
// alone, and is told nothing of them. Each of them is told what is wrong with it, the agent takes the memory that its
// pulls may take, and nothing is left in the end.
func TestHostileImages(t *testing.T) {
	victim := start(t)
	attacker := startAlone(t)
	listen(t)
	node := nodes(t)[0]
	here := "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	theirs := badregistry.Disk(newDisk(victim))
	misbehaving.Push(victim.ns+"/disk", theirs)
	all := attacks(theirs)
	drips, others := &all[0], all[1:]
	before := agentMemory(victim, node, time.Time{})

	// Its places are taken, by the very digest that the victim wants, too.
	attacker.apply(drips.manifest(attacker, here))
	drips.told(attacker)
	drip := time.Now()
	manifests := ""
	for i := range others {
		manifests += others[i].manifest(attacker, here)
	}
	attacker.apply(manifests)
	victim.apply(imaged(victim.ns+"/disk", "") + here)
	began := time.Now()
	uid := string(victim.vm("tiny", "to be Ready", func(vm *v1alpha1.VirtualMachine) bool {
		if text := summary(vm); strings.Contains(text, attacker.ns) {
			t.Errorf("the victim is told of another tenant's images: %s", text)
		}
		return isReady(vm)
	}).UID)
	t.Logf("the victim was Ready after %v", time.Since(began).Round(time.Second))
	if told := victim.kubectl("", "get", "events", "-o", "wide"); strings.Contains(told, attacker.ns) {
		t.Errorf("the victim has Events about another tenant's images: %s", told)
	}
	qemu := fmt.Sprint(qemus(uid))
	while := agentMemory(victim, node, drip)
	drips.told(attacker) // still

	// A pull ends with its VirtualMachine, and others have its place.
	imports := strings.Fields(attacker.onNode(node, "sh", "-c", "ls -d /var/lib/berth/images/.new-* || true"))
	var uids []string
	for _, a := range all {
		uids = append(uids, string(attacker.vm(a.name, "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil }).UID))
	}
	attacker.kubectl("", "delete", "vm", drips.name, "--wait=false")
	env.Eventually(t, "the downloads to end with their VirtualMachine", func() bool {
		return !slices.ContainsFunc(drips.harms, func(h harm) bool { return misbehaving.Sending(attacker.ns+"/"+h.repository) > 0 })
	})
	for i := range others {
		others[i].told(attacker)
	}
	if sent := misbehaving.Sent(attacker.ns + "/vmdk"); sent > vmdkMiB<<20/2 {
		t.Errorf("of a VMDK of %d MiB %d bytes were sent", vmdkMiB, sent)
	}
	if asked := misbehaving.Asked(attacker.ns + "/device"); asked != 1 {
		t.Errorf("a layer without a disk was asked for %d times", asked)
	}
	pod := attacker.pod("enormous", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if requests := pod.Spec.Containers[0].Resources.Requests.StorageEphemeral(); requests.Cmp(resource.MustParse("10Gi")) < 0 {
		t.Errorf("the berth of a disk without size requests %s of the node's storage", requests)
	}
	after := agentMemory(victim, node, time.Now())
	t.Logf("the agent took %d MiB, %d while they drip, %d after all of them", before, while, after)
	const places, each, largeWindow = 6, 25, 128 // of the node, as docs/resources.md says: other tests pull, too
	switch {
	case while-before < largeWindow/2:
		t.Error("the window takes no memory: this looks at something else")
	case max(while, after)-before > places*each+largeWindow:
		t.Errorf("want at most %d MiB more", places*each+largeWindow)
	}

	attacker.kubectl("", "delete", "vm", "--all")
	for _, uid := range uids {
		nothingLeftOn(attacker, node, uid)
	}
	for _, one := range imports {
		env.Eventually(t, one+" to be gone", func() bool {
			return attacker.onNode(node, "sh", "-c", "ls -d "+one+" 2>/dev/null || true") == ""
		})
	}
	if now := fmt.Sprint(qemus(uid)); now != qemu || !isReady(victim.vm("tiny", "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil })) {
		t.Errorf("the victim's QEMU was %s, and is %s", qemu, now)
	}
}

// agentMemory waits until kubelet of a node has looked at its agent's memory after a time, every ten seconds or so, and
// returns its working set in MiB.
func agentMemory(l *lab, node string, after time.Time) (mib int) {
	l.Helper()
	env.Eventually(l, "kubelet to look at the agent's memory", func() bool {
		metrics := l.kubectl("", "get", "--raw", "/api/v1/nodes/"+node+"/proxy/metrics/resource")
		for line := range strings.Lines(metrics) {
			labels, values, _ := strings.Cut(line, "} ")
			if !strings.HasPrefix(labels, "container_memory_working_set_bytes{") || !strings.Contains(labels, `pod="berth-agent-`) {
				continue
			}
			var bytes float64
			var at int64
			if _, err := fmt.Sscan(values, &bytes, &at); err != nil {
				l.Fatalf("reading %q: %v", line, err)
			}
			mib = int(bytes) >> 20
			return time.UnixMilli(at).After(after)
		}
		return false
	})
	return mib
}
