package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// claims measures starts of a guest with a disk on a claim, beside what they need one after the other: a pod that has the
// same claim, and the domain.
func (b *bench) claims(ctx context.Context, n int) ([]figure, error) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.ns, Name: "claim"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("400Mi")}},
		},
	}
	if err := b.Create(ctx, claim); err != nil {
		return nil, err
	}
	var guests, pods, domains, ratios []float64
	for i := range n + 1 { // the first has the volume made
		vm, pod := b.guest(fmt.Sprintf("claimed-%d", i)), b.pod(fmt.Sprintf("claimed-pod-%d", i))
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: claim.Name}}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
		}}}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		guest, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			plain := b.guest("plain")
			if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, plain, isRunning); err != nil {
				return nil, err
			}
			if err := b.describe(ctx, plain, "bench"); err != nil {
				return nil, err
			}
			if _, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, plain); err != nil {
				return nil, err
			}
		}
		settle()
		if _, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm); err != nil {
			return nil, err
		}
		bare, err := timed(ctx, b, &corev1.PodList{}, pod, isReady)
		if err != nil {
			return nil, err
		}
		settle()
		if _, err := gone(ctx, b, &corev1.PodList{}, pod); err != nil {
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
		if i > 0 {
			guests, pods, domains = append(guests, guest.Seconds()), append(pods, bare.Seconds()), append(domains, domain.Seconds())
			ratios = append(ratios, guest.Seconds()/(bare+domain).Seconds())
		}
	}
	return []figure{
		of("claim_start_ratio", "x", 1.25, "a pod with the claim and virsh create, one after the other", ratios),
		of("claim_start", "s", 0, "", guests),
		of("claim_pod_to_ready", "s", 0, "", pods),
		of("claim_virsh_create", "s", 0, "", domains),
	}, nil
}
