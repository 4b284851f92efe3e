package kube_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// In an upgrade a program may run before the CRD has all the fields that it writes: it writes the others.
func TestStatusUnderAnOlderCRD(t *testing.T) {
	_, c := env.APIServer(t)
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: v1alpha1.VirtualMachineSpec{
			Memory: v1alpha1.Memory{Size: resource.MustParse("1Gi")}, Disks: []v1alpha1.Disk{{Name: "root", Image: "debian"}},
		},
	}
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	type guest struct {
		Hostname string `json:"hostname"`
		Later    string `json:"later"`
	}
	type disk struct {
		Name  string `json:"name"`
		Later string `json:"later,omitempty"`
	}
	newer := &struct {
		Phase string `json:"phase"`
		Guest guest  `json:"guest"`
		Disks []disk `json:"disks"`
		Later string `json:"later"`
	}{"Running", guest{"web", "x"}, []disk{{"root", "x"}, {"data", ""}, {"more", "x"}}, "x"}
	w := kube.StatusWriter{Client: c, Manager: kube.AgentManager}
	if wrote, err := w.Write(t.Context(), vm, newer, nil); err != nil || !wrote {
		t.Fatalf("wrote %t, %v", wrote, err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(vm), vm); err != nil {
		t.Fatal(err)
	}
	if vm.Status.Phase != v1alpha1.PhaseRunning || vm.Status.Guest == nil || vm.Status.Guest.Hostname != "web" || len(vm.Status.Disks) != 3 {
		t.Errorf("of the fields that the CRD has was written %+v", vm.Status)
	}
}
