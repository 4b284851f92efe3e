package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

const (
	guestNamespace = "guests"
	// guestsPerNode is what kubelets allow by default, less what else a node runs.
	guestsPerNode = 100
	// connections is how many requests this program has under way.
	connections = 16
)

// makeNodes makes nodes, and what their agents say of them.
func (c *cluster) makeNodes(ctx context.Context, n int) error {
	agent := &kube.StatusWriter{Client: c, Manager: kube.AgentManager}
	return each(n, connections, func(i int) error {
		name := fmt.Sprintf("node-%03d", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
		host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, o := range []client.Object{node, host} {
			if err := c.Create(ctx, o); err != nil {
				return err
			}
		}
		// The API server taints new nodes, and what would take that away is not there.
		if err := c.Patch(ctx, node, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"taints":null}}`))); err != nil {
			return err
		}
		_, err := agent.Write(ctx, host, hostStatus(), nil)
		return err
	})
}

// hostStatus is that of a usual host.
func hostStatus() *v1alpha1.VirtualMachineHostStatus {
	s := &v1alpha1.VirtualMachineHostStatus{
		Acceleration: v1alpha1.AccelerationKVM, BootID: "a3f0c1f2-8a54-4d8e-9f0b-4c7a0d6b1e11", AgentVersion: "0.1.0",
		LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", KernelVersion: "6.1.0-28-amd64", CPUs: 64, Memory: resource.NewQuantity(512<<30, resource.BinarySI),
	}
	for i := range 40 {
		s.CPUModels = append(s.CPUModels, fmt.Sprintf("Model-Server-v%d", i))
		s.MachineTypes = append(s.MachineTypes, fmt.Sprintf("pc-q35-%d.%d", i/10, i%10))
	}
	for i := range 10 {
		s.Images = append(s.Images, v1alpha1.HostImage{Digest: digest(i), Size: resource.NewQuantity(2<<30, resource.BinarySI)})
	}
	s.Conditions = stamped(nil, 1,
		condition.New(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady, ""),
		condition.New(v1alpha1.ConditionWellConfigured, true, v1alpha1.ReasonWellConfigured, ""))
	return s
}

func digest(i int) string { return fmt.Sprintf("sha256:%064x", i) }

func guestName(i int) string { return fmt.Sprintf("guest-%05d", i) }

// makeGuests makes VirtualMachines such as people have.
func (c *cluster) makeGuests(ctx context.Context, n int) error {
	return each(n, connections, func(i int) error { return c.Create(ctx, usualGuest(guestName(i), i)) })
}

// usualGuest has a disk, and first-boot data.
func usualGuest(name string, i int) *v1alpha1.VirtualMachine {
	userData := "#cloud-config\npackages: [nginx]\nwrite_files:\n- path: /etc/motd\n  content: |\n    " + strings.Repeat("one of many. ", 40) + "\n"
	size := resource.MustParse("20Gi")
	return &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: guestNamespace, Name: name,
			Labels: map[string]string{"app.kubernetes.io/name": "web", "app.kubernetes.io/instance": fmt.Sprint(i % 100)},
		},
		Spec: v1alpha1.VirtualMachineSpec{
			Memory:            v1alpha1.Memory{Size: resource.MustParse("2Gi")},
			Disks:             []v1alpha1.Disk{{Name: "root", Image: "quay.io/containerdisks/debian:12", Size: &size}},
			Networks:          []v1alpha1.Network{{Name: "default", Pod: &v1alpha1.PodNetwork{}}},
			CloudInit:         &v1alpha1.CloudInit{UserData: &userData},
			SSHAuthorizedKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ6yUOLG9uaWO1iZyGV3zYHZzQqJt6QJpTQb6QJ8pX4W admin@example.org"},
			Berth:             &v1alpha1.BerthTemplate{Labels: map[string]string{"app": "web"}},
		},
	}
}

// changeGuests changes one spec of a hundred, and returns how many that are.
func (c *cluster) changeGuests(ctx context.Context, n int) (int, error) {
	changed := (n + 99) / 100
	return changed, each(changed, connections, func(i int) error {
		vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: guestNamespace, Name: guestName(i * 100)}}
		return c.Patch(ctx, vm, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"restartPolicy":"OnFailure"}}`)))
	})
}

// each does something n times, several at once.
func each(n, atOnce int, do func(i int) error) error {
	var group sync.WaitGroup
	errs := make([]error, atOnce)
	for hand := range atOnce {
		group.Go(func() {
			for i := hand; i < n && errs[hand] == nil; i += atOnce {
				errs[hand] = do(i)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
