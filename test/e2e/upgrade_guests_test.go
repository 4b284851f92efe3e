package e2e

import (
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// kind is a guest that lives through upgrades.
type kind struct {
	name, manifest string
	does           func(*lab, *v1alpha1.VirtualMachine) // once it is up
	is             func(*v1alpha1.VirtualMachine) bool  // from then on
}

const (
	untouched = "kernel"  // runs on from beginning to end
	pending   = "pending" // has no image
)

// remade are those that the newer version restarts in place, and then makes anew.
var remade = []string{"disks", "service", "startup", "secret", "keys", "alone", "onfailure"}

const userData = `
apiVersion: v1
kind: Secret
metadata: {name: user-data}
stringData: {userdata: "#cloud-config"}
`

func kinds() []kind {
	const probe = "{httpGet: {path: /, port: 80}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 120}\n"
	disks := strings.Replace(disked, "size: 1Gi}]", "size: 1Gi}, {name: data, image: $TINY}, {name: scratch, image: $TINY, ephemeral: true}]", 1)
	return []kind{
		{name: untouched, manifest: tiny, is: isReady},
		{name: "disk", manifest: disked, is: isReady},
		{name: "disks", manifest: disks, is: isReady},
		{name: "claim", manifest: tiny + "  disks: [" + claimed("files", "") + "]\n" + claimOf("files", "Filesystem", "ReadWriteOnce", "300Mi"), is: isReady},
		{name: "service", manifest: tiny + "  berth: {labels: {app: tiny}}\n  readinessProbe: " + probe, is: isReady},
		{name: "startup", manifest: tiny + "  startupProbe: " + probe, is: isReady},
		{name: "secret", manifest: tiny + "  cloudInit: {userDataSecretRef: {name: user-data, key: userdata}}\n", is: isReady},
		{name: "keys", manifest: tiny + "  sshAuthorizedKeys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEaiFjqBBAnRsqZLyDyBMzpH3EFGQG0xT0rVFEmkFQpu]\n", is: isReady},
		{name: "alone", manifest: tiny + "  networks: []\n", is: isReady},
		{name: "onfailure", manifest: tiny + "  restartPolicy: OnFailure\n", does: says("panic"), is: restartedAfter(v1alpha1.ReasonGuestPanicked, 134)},
		{name: "succeeded", manifest: tiny + "  restartPolicy: Never\n", does: says("poweroff"), is: phase(v1alpha1.PhaseSucceeded)},
		{name: "failed", manifest: tiny + "  restartPolicy: Never\n", does: says("panic"), is: phase(v1alpha1.PhaseFailed)},
		{name: "stopped", manifest: disked, does: asks(`{"state":"Stopped"}`), is: phase(v1alpha1.PhaseStopped)},
		{name: "paused", manifest: tiny + "  state: Paused\n", is: phase(v1alpha1.PhasePaused)},
		{name: pending, manifest: strings.Replace(disked, "$TINY", "$REGISTRY/lab/none:1", 1), is: waits},
	}
}

// waits: it has no image.
func waits(vm *v1alpha1.VirtualMachine) bool {
	return has(vm, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonImageNotFound)
}

// begin has guests come to what they are when an upgrade finds them.
func (u *upgrade) begin(kinds ...kind) {
	u.Helper()
	manifests := ""
	for _, k := range kinds {
		name := "{name: " + k.name + "}"
		manifests += "---" + strings.NewReplacer("{name: tiny}", name, "{name: disked}", name, "96Mi", memoryWords[u.words]).Replace(k.manifest)
	}
	u.apply(manifests)
	for _, k := range kinds {
		if k.does != nil {
			vm := u.vm(k.name, "to run", runs)
			u.logs(k.name).await("tiny: up")
			k.does(u.lab, vm)
		}
	}
	for _, k := range kinds {
		vm := u.vm(k.name, "to be as an upgrade finds it", k.is)
		u.uids[k.name] = string(vm.UID)
		if isReady(vm) {
			u.follow(k.name)
		}
	}
}

// follow is at the console of a guest's present container from now on.
func (u *upgrade) follow(name string) {
	u.Helper()
	u.consoles[name] = u.logs(name)
	u.consoles[name].await("tiny: up")
}

// treat has the newer version do to guests of the older one all that is done to guests.
func (u *upgrade) treat(older, newer product) {
	u.Helper()
	u.Log("the newer version restarts guests, in the older one's berths")
	u.restart(older, append(remade, "disk")...)

	u.Log("it makes berths anew, starts, resumes, and finds an image at last")
	asked := map[string]string{
		"stopped": `{"state":"Running"}`, "paused": `{"state":"Running"}`, "failed": `{"restartedAt":"now"}`,
		pending: `{"disks":[{"name":"root","image":"` + os.Getenv("LAB_IMAGE_TINY") + `","size":"1Gi"}]}`,
	}
	for _, name := range remade {
		asked[name] = `{"restartedAt":"now"}`
	}
	before := u.look()
	for name, spec := range asked {
		u.patch(name, spec)
	}
	for name := range asked {
		vm := u.vm(name, "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool {
			had := before[name].Berth
			return isReady(vm) && (name == "paused" || vm.Status.Berth.PodUID != had)
		})
		if pod := u.berth(vm); name != "paused" && !isOfTag(pod, newer) {
			u.Errorf("the new berth of %s has the image %s, want %s", name, pod.Spec.Containers[0].Image, newer.tag)
		}
		u.follow(name)
	}

	u.Log("it pauses and resumes")
	for _, state := range []v1alpha1.Phase{v1alpha1.PhasePaused, v1alpha1.PhaseRunning} {
		for name := range u.consoles {
			if name != untouched {
				u.patch(name, `{"state":"`+string(state)+`"}`)
			}
		}
		for name := range u.consoles {
			if name != untouched {
				u.vm(name, "to be "+string(state), phase(state))
			}
		}
	}
}

// restart has guests end by themselves. They start again in their berths, which have a product's shim.
func (u *upgrade) restart(shim product, names ...string) {
	u.Helper()
	before := map[string]*v1alpha1.VirtualMachine{}
	ends := []end{isKilled, powersOff} // under OnFailure, which is even in the list, only the first starts again
	for i, name := range names {
		before[name] = u.vm(name, "to be Ready", isReady)
		ends[i%2].cause(u.lab, before[name])
	}
	for i, name := range names {
		was, e := before[name].Status, ends[i%2]
		vm := u.vm(name, "to be Ready after its restart", func(vm *v1alpha1.VirtualMachine) bool {
			return isReady(vm) && vm.Status.Restarts == was.Restarts+1 && exited(vm, e.reason, e.code)
		})
		if pod := u.berth(vm); !isOfTag(pod, shim) || vm.Status.Berth.PodUID != was.Berth.PodUID || !slices.Equal(vm.Status.Addresses, was.Addresses) {
			u.Errorf("%s has the berth %v at %v with the image %s; want %v at %v with %s", name,
				vm.Status.Berth, vm.Status.Addresses, pod.Spec.Containers[0].Image, was.Berth, was.Addresses, shim.tag)
		}
		u.follow(name)
	}
}

// berth is the pod that a guest is in.
func (u *upgrade) berth(vm *v1alpha1.VirtualMachine) *corev1.Pod {
	u.Helper()
	return u.pod(vm.Name, "to be there", func(p *corev1.Pod) bool { return p != nil && p.UID == vm.Status.Berth.PodUID })
}
