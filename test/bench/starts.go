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
			Kernel: &v1alpha1.Kernel{
				Image: os.Getenv("LAB_IMAGE_KERNEL"), InitrdPath: "/boot/initrd", CommandLine: "console=ttyS0 no_timer_check",
			},
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

func isReadyGuest(vm *v1alpha1.VirtualMachine) bool {
	return condition.Is(vm.Status.Conditions, v1alpha1.ConditionReady, metav1.ConditionTrue)
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
		if err := b.describe(ctx, vm, "bench"); err != nil {
			return nil, err
		}
		settle()
		guestEnd, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
		if err != nil {
			return nil, err
		}
		bare, err := timed(ctx, b, &corev1.PodList{}, pod, isReady)
		if err != nil {
			return nil, err
		}
		settle()
		podEnd, err := gone(ctx, b, &corev1.PodList{}, pod)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if err := b.create(ctx, "bench"); err != nil {
			return nil, err
		}
		domain := time.Since(began)
		if err := b.destroy(ctx, "bench"); err != nil {
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

// tools measures a start from a disk with the guest program's, beside one without.
func (b *bench) tools(ctx context.Context, n int) ([]figure, error) {
	start := func(tools v1alpha1.GuestTools) does {
		return func() (time.Duration, error) {
			vm := b.guest("disk")
			vm.Spec.Kernel, vm.Spec.GuestTools = nil, tools
			vm.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: os.Getenv("LAB_IMAGE_TINY")}}
			took, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning)
			if err != nil {
				return 0, err
			}
			settle()
			_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
			return took, err
		}
	}
	return pair{"tools_start", 1.1, "guestTools None", start(v1alpha1.GuestToolsOffered), start(v1alpha1.GuestToolsNone)}.measure(max(3, n/2))
}

// portsDir is the node's own, so that its sockets are there for this program, too.
const portsDir = "/var/lib/libvirt/"

var (
	nameElement  = regexp.MustCompile(`<name>[^<]*</name>`)
	uuidElement  = regexp.MustCompile(`<uuid>[^<]*</uuid>`)
	consolePath  = regexp.MustCompile(`/run/berth/consoles/[^']*`)
	portPath     = regexp.MustCompile(`/run/berth/ports/[^.']*`)
	channelPath  = regexp.MustCompile(`<source mode='bind' path='/var/lib/libvirt/qemu/channel[^']*'/>`)
	tapName      = regexp.MustCompile(`<target dev='bt[^']*'[^>]*/>`)
	identityMark = regexp.MustCompile(`(?s)<metadata>.*</metadata>`)
)

// describe keeps on the node how somebody without Berth would describe the guest's machine, as a domain of another name.
func (b *bench) describe(ctx context.Context, vm *v1alpha1.VirtualMachine, name string) error {
	description, err := b.onNode(ctx, "", "virsh", "dumpxml", "--inactive", b.ns+"_"+vm.Name)
	if err != nil {
		return err
	}
	description = uuidElement.ReplaceAllString(description, "")
	description = identityMark.ReplaceAllString(description, "")
	description = channelPath.ReplaceAllString(description, "")
	description = tapName.ReplaceAllString(description, "")
	description = consolePath.ReplaceAllString(description, "/run/"+name+"-console.sock")
	description = portPath.ReplaceAllString(description, portsDir+name)
	description = nameElement.ReplaceAllString(description, "<name>"+name+"</name>")
	_, err = b.onNode(ctx, description, "sh", "-c", "cat >/run/"+name+".xml")
	return err
}

// create starts a domain that was described.
func (b *bench) create(ctx context.Context, name string) error {
	_, err := b.onNode(ctx, "", "virsh", "create", "/run/"+name+".xml")
	return err
}

func (b *bench) destroy(ctx context.Context, name string) error {
	_, err := b.onNode(ctx, "", "virsh", "destroy", name)
	return err
}
