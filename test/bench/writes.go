package main

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// writeVerbs are how the API server calls requests that change something, in its metrics.
var writeVerbs = []string{"POST", "PUT", "PATCH", "APPLY", "DELETE"}

// writes counts what a guest's life writes to the API server, whoever does, beyond a bare pod's. Leases are not
// counted, nor what nodes and hosts tell of themselves; Events are.
func (b *bench) writes(ctx context.Context, n int) ([]figure, error) {
	beyond, guests, pods, err := b.writesOver(ctx, "writes", n, func(*v1alpha1.VirtualMachine) {})
	if err != nil {
		return nil, err
	}
	claim := b.claim("written", "100Mi")
	if err := b.Create(ctx, claim); err != nil {
		return nil, err
	}
	claimed, _, _, err := b.writesOver(ctx, "writes-claim", n, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: claim.Name}}}
	})
	if err != nil {
		return nil, err
	}
	return []figure{
		of("api_writes_over_pod", "", 10, "a bare pod's life, Events included", beyond),
		of("api_writes", "", 0, "", guests),
		of("api_writes_pod", "", 0, "", pods),
		of("api_writes_claim_over_pod", "", 12, "the same, of a guest with a claim", claimed),
	}, nil
}

// writesOver are those of guests, beyond those of bare pods.
func (b *bench) writesOver(ctx context.Context, prefix string, n int, change func(*v1alpha1.VirtualMachine)) (beyond, guests, pods []float64, err error) {
	for i := range n/4 + 1 {
		name := fmt.Sprintf("%s-%d", prefix, i)
		guest, err := b.written(ctx, func() error {
			vm := b.guest(name)
			change(vm)
			if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isReadyGuest); err != nil {
				return err
			}
			settle()
			_, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
			return err
		})
		if err != nil {
			return nil, nil, nil, err
		}
		pod, err := b.written(ctx, func() error {
			pod := b.pod(name)
			if _, err := timed(ctx, b, &corev1.PodList{}, pod, isReady); err != nil {
				return err
			}
			settle()
			_, err := gone(ctx, b, &corev1.PodList{}, pod)
			return err
		})
		if err != nil {
			return nil, nil, nil, err
		}
		guests, pods, beyond = append(guests, guest), append(pods, pod), append(beyond, guest-pod)
	}
	return beyond, guests, pods, nil
}

// written is how many writes the API server took while something was done.
func (b *bench) written(ctx context.Context, do func() error) (float64, error) {
	before, err := b.countWrites(ctx)
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := b.countWrites(ctx)
	return after - before, err
}

func (b *bench) countWrites(ctx context.Context) (float64, error) {
	client, err := rest.HTTPClientFor(b.config)
	if err != nil {
		return 0, err
	}
	all, err := scrape(ctx, client, b.config.Host+"/metrics", "")
	counts := []string{"pods", "virtualmachines", "events"}
	return all.sum("apiserver_request_total", func(labels map[string]string) bool {
		return slices.Contains(writeVerbs, labels["verb"]) && slices.Contains(counts, labels["resource"])
	}), err
}
