package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

// guest is the fastest guest of the lab; it is ended at once, not asked.
func (b *bench) guest(name string) *v1alpha1.VirtualMachine {
	zero := int64(0)
	return &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.ns, Name: name},
		Spec: v1alpha1.VirtualMachineSpec{
			Memory: v1alpha1.Memory{Size: resource.MustParse("96Mi")}, TerminationGracePeriodSeconds: &zero,
			Kernel:       &v1alpha1.Kernel{Image: os.Getenv("LAB_IMAGE_KERNEL"), InitrdPath: "/boot/initrd"},
			Networks:     []v1alpha1.Network{{Name: "default", Pod: &v1alpha1.PodNetwork{}}},
			NodeSelector: map[string]string{corev1.LabelHostname: b.node},
		},
	}
}

// pod is the least pod there can be, beside which a guest is measured.
func (b *bench) pod(name string) *corev1.Pod {
	one := int64(1) // with 0 the API server forgets a pod before kubelet has ended it
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.ns, Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &one,
			NodeSelector:                  map[string]string{corev1.LabelHostname: b.node},
			Containers:                    []corev1.Container{{Name: "c", Image: os.Getenv("LAB_IMAGE_TOOLS"), Args: []string{"serve", ":8080", "x"}}},
		},
	}
}

func isRunning(vm *v1alpha1.VirtualMachine) bool {
	return condition.Is(vm.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionTrue)
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// starts measures one start after the other: a guest, a bare pod, a bare domain; and their ends.
func (b *bench) starts(ctx context.Context, n int) ([]figure, error) {
	var guests, pods, domains, ratios, guestEnds, podEnds, endRatios []float64
	for i := range n + 1 { // the first warms caches and does not count
		vm, pod := b.guest(fmt.Sprintf("guest-%d", i)), b.pod(fmt.Sprintf("pod-%d", i))
		guest, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning)
		if err != nil {
			return nil, err
		}
		description, err := b.onNode(ctx, "", "virsh", "dumpxml", "--inactive", b.ns+"_"+vm.Name)
		if err != nil {
			return nil, err
		}
		guestEnd, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
		if err != nil {
			return nil, err
		}
		bare, err := timed(ctx, b, &corev1.PodList{}, pod, isReady)
		if err != nil {
			return nil, err
		}
		podEnd, err := gone(ctx, b, &corev1.PodList{}, pod)
		if err != nil {
			return nil, err
		}
		domain, err := b.domain(ctx, description)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		guests, pods, domains = append(guests, guest.Seconds()), append(pods, bare.Seconds()), append(domains, domain.Seconds())
		ratios = append(ratios, guest.Seconds()/max(bare, domain).Seconds())
		guestEnds, podEnds = append(guestEnds, guestEnd.Seconds()), append(podEnds, podEnd.Seconds())
		endRatios = append(endRatios, guestEnd.Seconds()/podEnd.Seconds())
	}
	return []figure{
		of("apply_to_running_ratio", "x", 1.25, "the slower of bare pod and virsh create, pair by pair", ratios),
		of("apply_to_running", "s", 0, "", guests),
		of("pod_to_ready", "s", 0, "", pods),
		of("virsh_create", "s", 0, "", domains),
		of("delete_ratio", "x", 1.25, "a bare pod's, pair by pair", endRatios),
		of("delete", "s", 0, "", guestEnds),
		of("pod_delete", "s", 0, "", podEnds),
	}, nil
}

var (
	nameElement  = regexp.MustCompile(`<name>[^<]*</name>`)
	uuidElement  = regexp.MustCompile(`<uuid>[^<]*</uuid>`)
	consolePath  = regexp.MustCompile(`/run/berth/consoles/[^']*`)
	channelPath  = regexp.MustCompile(`<source mode='bind' path='/var/lib/libvirt/qemu/channel[^']*'/>`)
	identityMark = regexp.MustCompile(`(?s)<metadata>.*</metadata>`)
)

// domain times virsh create of the same machine, halted, as somebody without Berth would make it.
func (b *bench) domain(ctx context.Context, description string) (time.Duration, error) {
	description = uuidElement.ReplaceAllString(description, "")
	description = identityMark.ReplaceAllString(description, "")
	description = channelPath.ReplaceAllString(description, "")
	description = consolePath.ReplaceAllString(description, "/run/bench-console.sock")
	description = nameElement.ReplaceAllString(description, "<name>bench</name>")
	if _, err := b.onNode(ctx, description, "sh", "-c", "cat >/run/bench.xml"); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := b.onNode(ctx, "", "virsh", "create", "--paused", "/run/bench.xml"); err != nil {
		return 0, err
	}
	took := time.Since(began)
	_, err := b.onNode(ctx, "", "virsh", "destroy", "bench")
	return took, err
}
