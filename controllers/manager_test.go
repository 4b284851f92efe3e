package controllers

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestLeaseAlone: the deadline of the lease's requests is theirs only. It would end every watch of the operator.
func TestLeaseAlone(t *testing.T) {
	config := &rest.Config{Host: "https://127.0.0.1:1", UserAgent: "mine"}
	lock, err := (&Options{Identity: "a", Namespace: "b"}).lock(config)
	if err != nil || lock == nil {
		t.Fatalf("lock is %v, %v", lock, err)
	}
	if config.Timeout != 0 || config.UserAgent != "mine" {
		t.Errorf("the lease changed what others are made from: timeout %v, user agent %q", config.Timeout, config.UserAgent)
	}
}

// TestCachesHoldLittle: what users write at length costs the operator little, even of a thousand VirtualMachines as fat as
// any may be.
func TestCachesHoldLittle(t *testing.T) {
	const count, each = 1000, 4 << 10 // bytes
	long := strings.Repeat("l", 63)
	many := func(n int, add func(name string)) {
		for i := range n {
			add(fmt.Sprint("name-", i, "-", long))
		}
	}
	for name, fatten := range map[string]func(*v1alpha1.VirtualMachine){
		"annotations": func(vm *v1alpha1.VirtualMachine) {
			vm.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("a", 65<<10)}
		},
		"labels": func(vm *v1alpha1.VirtualMachine) {
			vm.Labels = map[string]string{}
			many(500, func(name string) { vm.Labels[name] = long })
		},
		"first-boot data": func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.CloudInit = &v1alpha1.CloudInit{UserData: new(strings.Repeat("u", 40<<10)), NetworkData: new(strings.Repeat("n", 8<<10))}
		},
		"keys": func(vm *v1alpha1.VirtualMachine) {
			for range 2 {
				vm.Spec.SSHAuthorizedKeys = append(vm.Spec.SSHAuthorizedKeys, "ssh-rsa "+strings.Repeat("A", 8000))
			}
		},
		"finalizers": func(vm *v1alpha1.VirtualMachine) {
			many(500, func(name string) { vm.Finalizers = append(vm.Finalizers, "example.com/"+name) })
		},
		"owners": func(vm *v1alpha1.VirtualMachine) {
			many(500, func(name string) { vm.OwnerReferences = append(vm.OwnerReferences, metav1.OwnerReference{Name: name}) })
		},
		"an affinity": func(vm *v1alpha1.VirtualMachine) {
			terms := &corev1.NodeSelector{}
			many(500, func(name string) {
				terms.NodeSelectorTerms = append(terms.NodeSelectorTerms, corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: name}}})
			})
			vm.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: terms}}
		},
		"a probe's headers": func(vm *v1alpha1.VirtualMachine) {
			get := &corev1.HTTPGetAction{}
			many(500, func(name string) { get.HTTPHeaders = append(get.HTTPHeaders, corev1.HTTPHeader{Name: name}) })
			vm.Spec.ReadinessProbe = &v1alpha1.Probe{Probe: corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}}
		},
		"a berth's labels": func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Berth = &v1alpha1.BerthTemplate{Labels: map[string]string{"a": strings.Repeat("v", 40<<10)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cached := make([]any, count)
			before := heap()
			for i := range cached {
				vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("vm-", i), ManagedFields: []metav1.ManagedFieldsEntry{{}}}}
				fatten(vm)
				var err error
				if cached[i], err = trimForCache(vm); err != nil {
					t.Fatal(err)
				}
			}
			if grown := heap() - before; grown > count*each {
				t.Errorf("a cache of %d VirtualMachines takes %d KiB, want at most %d", count, grown>>10, count*each>>10)
			}
			runtime.KeepAlive(cached)
		})
	}
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
