package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// maxGrowth is how much more an operator may take for a thousand VirtualMachines, however large each is, in MiB.
const maxGrowth = 40

// fat measures an operator before and after somebody makes n VirtualMachines that are stopped and large, and how it serves
// another one then.
func (c *cluster) fat(ctx context.Context, play *play, n int) (figures []figure, err error) {
	o, err := c.startOperator(ctx)
	if err != nil {
		return nil, err
	}
	ready := 0
	bystander := func(name string) (time.Duration, error) {
		began := time.Now()
		if err := c.Create(ctx, usualGuest(name, 0)); err != nil {
			return 0, err
		}
		ready++
		err := play.await(ctx, "a guest that is ready", func(s standing) bool { return s.ready == ready })
		return time.Since(began), err
	}
	if _, err := bystander("warm"); err != nil { // it does not count
		return nil, err
	}
	alone, err := bystander("alone")
	if err != nil {
		return nil, err
	}
	before, err := o.use(ctx)
	if err != nil {
		return nil, err
	}
	bytes, err := c.makeFatGuests(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := o.settles(ctx, n); err != nil {
		return nil, err
	}
	after, err := o.use(ctx)
	if err != nil {
		return nil, err
	}
	beside, err := bystander("beside")
	if err != nil {
		return nil, err
	}
	all := fmt.Sprintf("%d stopped VirtualMachines of %d KiB", n, bytes>>10)
	figures = append(figures,
		one("fat_rss", "MiB", before.rss+maxGrowth, fmt.Sprintf("the operator's with %s, was %.0f", all, before.rss), after.rss),
		one("fat_heap", "MiB", 0, fmt.Sprintf("the operator's, was %.0f", before.heap), after.heap),
		one("fat_peak_rss", "MiB", maxRSS, "meanwhile", after.peak),
		one("fat_ready_ratio", "x", 1.5, "another VirtualMachine from its request to Ready; without them", beside.Seconds()/alone.Seconds()),
	)
	// Its successor reads them all at once.
	o.end(syscall.SIGKILL)
	began := time.Now()
	next, err := c.startOperator(ctx)
	if err != nil {
		return figures, err
	}
	if err := next.settles(ctx, n); err != nil {
		return figures, err
	}
	took := time.Since(began)
	start, err := next.use(ctx)
	return append(figures,
		one("fat_takeover", "s", maxStart, "killed with its lease held", took.Seconds()),
		one("fat_takeover_rss", "MiB", maxRSS, "peak", start.peak),
	), err
}

// makeFatGuests makes VirtualMachines that are stopped, and returns how many bytes one has.
func (c *cluster) makeFatGuests(ctx context.Context, n int) (bytes int, err error) {
	raw, err := json.Marshal(fatGuest(0))
	if err != nil {
		return 0, err
	}
	return len(raw), each(n, connections, func(i int) error { return c.Create(ctx, fatGuest(i)) })
}

// fatGuest has the most of what has a bound, and of what has none more than any cache keeps. Larger ones, up to the one and
// a half MiB of a request, end the API server before the operator: a thousand of half a MiB take that 10 GiB.
func fatGuest(i int) *v1alpha1.VirtualMachine {
	vm := usualGuest(guestName(i), i)
	for n := range 100 {
		vm.Labels[fmt.Sprint("label-", n)] = strings.Repeat("l", 63)
	}
	s := &vm.Spec
	s.State = v1alpha1.StateStopped
	s.CloudInit = &v1alpha1.CloudInit{UserData: new(strings.Repeat("u", 40<<10)), NetworkData: new(strings.Repeat("n", 8<<10))}
	s.SSHAuthorizedKeys = slices.Repeat([]string{"ssh-rsa " + strings.Repeat("A", 8000)}, 2)
	var terms []corev1.NodeSelectorTerm
	for n := range 200 {
		terms = append(terms, corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{
			Key: fmt.Sprint("label-", n), Operator: corev1.NodeSelectorOpIn, Values: []string{strings.Repeat("v", 63), strings.Repeat("w", 63)},
		}}})
	}
	s.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
	}}
	return vm
}
