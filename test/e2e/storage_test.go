package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/test/env"
)

// claimOf is a claim's manifest, of the lab's class; mode and access are as Kubernetes names them.
func claimOf(name, mode, access, size string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {volumeMode: %s, accessModes: [%s], resources: {requests: {storage: %s}}}
`, name, mode, access, size)
}

// claim waits until a claim is as the test wants it. It is nil there when it is gone.
func (l *lab) claim(name, what string, is func(*corev1.PersistentVolumeClaim) bool) *corev1.PersistentVolumeClaim {
	l.Helper()
	return await(l.Context(), l, &corev1.PersistentVolumeClaimList{}, l.ns, name, "claim "+name+" "+what, is)
}

func isBound(c *corev1.PersistentVolumeClaim) bool {
	return c != nil && c.Status.Phase == corev1.ClaimBound
}

// grow has a claim become larger. Kubelet looks at volumes in use once in a minute or so, and at those that are not only
// when they are used.
func (l *lab) grow(name, size string) {
	l.Helper()
	l.kubectl("", "patch", "pvc", name, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size))
	want := resource.MustParse(size)
	l.claim(name, "to have "+size, func(c *corev1.PersistentVolumeClaim) bool {
		return c != nil && c.Status.Capacity.Storage().Cmp(want) >= 0
	})
}

// holder is a pod that sleeps on a node, as a user whose group owns the files, with claims at /disks/NAME: some as file
// systems, some as devices.
func holder(name, node, user string, files, devices []string) string {
	volumes := ""
	for _, claim := range slices.Concat(files, devices) {
		volumes += fmt.Sprintf("\n  - {name: %s, persistentVolumeClaim: {claimName: %[1]s}}", claim)
	}
	at := func(path string, claims []string) (entries string) {
		for _, claim := range claims {
			entries += fmt.Sprintf("\n    - {name: %s, %s: /disks/%[1]s}", claim, path)
		}
		return entries
	}
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %s}
  securityContext: {runAsUser: %s, runAsGroup: %[3]s, fsGroup: %[3]s, runAsNonRoot: %t, seccompProfile: {type: RuntimeDefault}}
  volumes:%s
  containers:
  - name: shell
    image: $BUSYBOX
    command: [sleep, "1000000"]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:%s
    volumeDevices:%s
`, name, node, user, user != "0", volumes, at("mountPath", files), at("devicePath", devices))
}

// sh runs a script in a pod or a guest, and returns what it prints.
func (l *lab) sh(name, script string) string {
	l.Helper()
	ran := l.exec(name, nil, "sh", "-ec", script)
	if ran.code != 0 {
		l.Fatalf("%s in %s: %d %s", script, name, ran.code, ran.err)
	}
	return strings.TrimSpace(ran.out)
}

// volumes of the claims of a namespace.
func (l *lab) volumes() (names []string) {
	l.Helper()
	var claims corev1.PersistentVolumeClaimList
	if err := l.List(l.Context(), &claims, client.InNamespace(l.ns)); err != nil {
		l.Fatal(err)
	}
	for _, c := range claims.Items {
		names = append(names, c.Spec.VolumeName)
	}
	return names
}

// unused waits until nobody on any node has a volume open or mounted: until then it has a loop device.
func (l *lab) unused(volumes ...string) {
	l.Helper()
	for _, volume := range volumes {
		env.Eventually(l, "volume "+volume+" to be used by nobody", func() bool {
			devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
			return !slices.ContainsFunc(devices, func(device string) bool {
				of, _ := os.ReadFile(device)
				return strings.Contains(string(of), volume)
			})
		})
	}
}

// TestStorage: the lab's volumes are what claims promise, so that journeys of guests tell of guests.
func TestStorage(t *testing.T) {
	l := start(t)
	l.kubectl("", "label", "ns", l.ns, "--overwrite", "pod-security.kubernetes.io/enforce=baseline") // who opens a device is root
	manifest := claimOf("files", "Filesystem", "ReadWriteMany", "300Mi") + claimOf("device", "Block", "ReadWriteMany", "64Mi")
	for _, node := range nodes(t)[:2] {
		manifest += holder("on-"+node, node, "0", []string{"files"}, []string{"device"})
	}
	l.apply(manifest)
	one, two := "on-"+nodes(t)[0], "on-"+nodes(t)[1]
	for _, pod := range []string{one, two} {
		l.kubectl("", "wait", "pod/"+pod, "--for=condition=Ready", "--timeout=2m")
	}
	volumes := l.volumes()

	t.Log("what is written on one node is read on the other")
	l.sh(one, "echo kept > /disks/files/file; echo kept | dd of=/disks/device bs=512 seek=9 conv=sync,fsync")
	for _, pod := range []string{one, two} {
		if got := l.sh(pod, "cat /disks/files/file; dd if=/disks/device bs=512 skip=9 count=1"); strings.Trim(got, "\n\x00") != "kept\nkept" {
			t.Errorf("%s reads %q", pod, got)
		}
	}

	t.Log("both grow while they are used")
	l.grow("files", "600Mi")
	l.grow("device", "128Mi")
	var files, device int
	sizes := l.sh(two, "set -- $(df -m /disks/files | tail -n 1); echo $2 $(blockdev --getsize64 /disks/device)")
	if _, err := fmt.Sscan(sizes, &files, &device); err != nil || files < 450 || device != 128<<20 {
		t.Errorf("they have %q, MiB and bytes", sizes)
	}

	t.Log("what one node gives back the other keeps, and the last leaves nothing")
	l.kubectl("", "delete", "pod", one)
	if got := l.sh(two, "cat /disks/files/file"); got != "kept" {
		t.Errorf("%s reads %q", two, got)
	}
	l.kubectl("", "delete", "pod", two)
	l.unused(volumes...)
	l.kubectl("", "delete", "pvc", "--all")
	env.Eventually(t, "the volumes to be deleted", func() bool {
		for _, volume := range volumes {
			if _, err := os.Stat(filepath.Join(os.Getenv("LAB_DIR"), "volumes", volume)); err == nil {
				return false
			}
		}
		return true
	})
}
