package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/badregistry"
	"github.com/berth-dev/berth/test/env"
)

const named = `
apiVersion: berth.dev/v1alpha1
kind: VirtualMachineImage
metadata: {name: data}
spec: {image: %s, imagePullSecrets: [{name: pull}]}
`

// TestVirtualMachineImage has a private image on two nodes before any guest needs it, of which one has no answer of the registry
// for a while. Guests that name it need no Secret, and get what it was resolved to, whatever its tag means since.
func TestVirtualMachineImage(t *testing.T) {
	l := start(t)
	listen(t)
	nodes := nodes(t)
	const repository = "/private"
	push := func(word string) { misbehaving.Push(l.ns+repository, badregistry.Disk(word+newDisk(l))) }
	image := func(what string, is func(*v1alpha1.VirtualMachineImage) bool) *v1alpha1.VirtualMachineImage {
		t.Helper()
		return await(l.Context(), l, &v1alpha1.VirtualMachineImageList{}, l.ns, "data", "VirtualMachineImage data "+what, is)
	}
	ready := func(is v1alpha1.Reason, count int32) func(*v1alpha1.VirtualMachineImage) bool {
		return func(i *v1alpha1.VirtualMachineImage) bool {
			return i != nil && condition.Reason(i.Status.Conditions, v1alpha1.ConditionReady) == is && i.Status.Nodes.Ready == count && i.Status.Nodes.Total == 2
		}
	}
	has := func(vm, word string) {
		t.Helper()
		l.vm(vm, "to be Ready", isReady)
		env.Eventually(l, vm+" to be reached", func() bool {
			ran := l.exec(vm, nil, "sh", "-ec", disk+fmt.Sprintf("head -c %d /dev/$(disk data)", len(word)))
			return ran.code == 0 && ran.out == word
		})
	}
	named2 := func(vm, node string) string {
		return guestWith(vm, "{name: data, virtualMachineImage: data}") + on(node)
	}
	t.Log("the registry does not answer one node")
	push("first")
	pullSecret(l, badregistry.Password)
	misbehaving.Refuse(l.ns+repository, l.addressOf(nodes[1]))
	l.apply(fmt.Sprintf(named, imageOf(l.ns+repository)))
	image("to be on one node", ready(v1alpha1.ReasonRegistryUnreachable, 1))
	misbehaving.Repair(l.ns + repository)
	first := image("to be on both", ready(v1alpha1.ReasonImageReady, 2))
	env.Eventually(l, "the porters to be gone", func() bool {
		var pods corev1.PodList
		return l.List(l.Context(), &pods) == nil && !strings.Contains(l.kubectl("", "get", "pods", "-o", "name"), "pod/data-")
	})

	t.Log("the tag moves, and guests have what it was")
	push("other")
	l.apply(named2("one", nodes[0]) + named2("two", nodes[1]))
	has("one", "first")
	has("two", "first")

	t.Log("refreshed, it is something else for who comes next")
	l.kubectl("", "patch", "vmimage", "data", "--type=merge", "-p", `{"spec":{"refreshedAt":"`+time.Now().Format(time.RFC3339)+`"}}`)
	image("to be resolved anew", func(i *v1alpha1.VirtualMachineImage) bool {
		return ready(v1alpha1.ReasonImageReady, 2)(i) && i.Status.Digest != first.Status.Digest
	})
	l.apply(named2("three", nodes[1]))
	has("three", "other")
	has("two", "first")

	t.Log("who asks always has what the tag means now, though the node knows what it meant")
	push("third")
	l.apply(guestWith("four", "{name: data, image: "+imageOf(l.ns+repository)+"}") + on(nodes[0]) + "  imagePullPolicy: Always\n  imagePullSecrets: [{name: pull}]\n")
	has("four", "third")
}
