package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// many is how many start at once in a burst.
const many = 10

// burst measures ten guests that are applied at once beside ten bare pods and ten bare domains that are started together.
func (b *bench) burst(ctx context.Context, n int) ([]figure, error) {
	var ratios, guests, both []float64
	for i := range max(2, n/4) + 1 { // the first does not count
		began := time.Now()
		vms := make([]*v1alpha1.VirtualMachine, many)
		err := together(func(j int) (err error) {
			vms[j] = b.guest(fmt.Sprintf("burst-%d-%d", i, j))
			_, err = timed(ctx, b, &v1alpha1.VirtualMachineList{}, vms[j], isRunning)
			return err
		})
		guest := time.Since(began)
		if err != nil {
			return nil, err
		}
		err = together(func(j int) (err error) {
			if err = b.describe(ctx, vms[j], fmt.Sprintf("bench-%d", j)); err != nil {
				return err
			}
			_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vms[j])
			return err
		})
		if err != nil {
			return nil, err
		}
		reference, err := b.podsAndDomains(ctx, i)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		guests, both = append(guests, guest.Seconds()), append(both, reference.Seconds())
		ratios = append(ratios, guest.Seconds()/reference.Seconds())
	}
	return []figure{
		of("burst_ratio", "x", 1.25, "ten bare pods and ten virsh create, started together, pair by pair", ratios),
		of("burst", "s", 0, "", guests),
		of("burst_pods_and_domains", "s", 0, "", both),
	}, nil
}

// podsAndDomains is how long ten bare pods and ten bare domains take that are started together.
func (b *bench) podsAndDomains(ctx context.Context, round int) (time.Duration, error) {
	pods := make([]*corev1.Pod, many)
	began := time.Now()
	err := together(func(j int) error {
		pods[j] = b.pod(fmt.Sprintf("burst-%d-%d", round, j))
		started := make(chan error, 1)
		go func() { started <- b.create(ctx, fmt.Sprintf("bench-%d", j)) }()
		_, err := timed(ctx, b, &corev1.PodList{}, pods[j], isReady)
		return errors.Join(err, <-started)
	})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	return took, together(func(j int) error {
		_, err := gone(ctx, b, &corev1.PodList{}, pods[j])
		return errors.Join(err, b.destroy(ctx, fmt.Sprintf("bench-%d", j)))
	})
}

// together does something ten times at once.
func together(do func(j int) error) error {
	var group sync.WaitGroup
	var errs [many]error
	for j := range many {
		group.Go(func() { errs[j] = do(j) })
	}
	group.Wait()
	return errors.Join(errs[:]...)
}
