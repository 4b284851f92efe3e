package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// claim is one of a file system.
func (b *bench) claim(name, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.ns, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
}

// mount gives a pod a claim.
func mount(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) {
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
	}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
}

// claims measures starts of a guest with a disk on a claim, beside what they need one after the other: a pod that has the
// same claim, and the domain.
func (b *bench) claims(ctx context.Context, n int) ([]figure, error) {
	claim := b.claim("claim", "400Mi")
	if err := b.Create(ctx, claim); err != nil {
		return nil, err
	}
	var guests, pods, domains, ratios []float64
	for i := range n + 1 { // the first has the volume made
		vm, pod := b.guest(fmt.Sprintf("claimed-%d", i)), b.pod(fmt.Sprintf("claimed-pod-%d", i))
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: claim.Name}}}
		mount(pod, claim)
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

// seeds measures how much longer a start takes on a blank claim, which is seeded from an image that the node has, than on one
// that has its data; beside qemu-img convert of the same image to such a claim, and sync.
func (b *bench) seeds(ctx context.Context, n int) (figures []figure, err error) {
	dir, err := os.MkdirTemp("", "bench-seeds-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	noise := make([]byte, seededDisk)
	_, _ = rand.Read(noise)
	for i := range noise {
		noise[i] &= 0x3f // so that there is something to compress
	}
	raw, zlib := filepath.Join(dir, "raw"), filepath.Join(dir, "zlib")
	if err := os.WriteFile(raw, noise, 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, zlib).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("qemu-img: %w: %s", err, out)
	}
	served := b.serve(http.FileServer(http.Dir(dir)))
	defer func() { err = errors.Join(err, served.end()) }()
	for name, format := range map[string]string{"raw": "raw", "zlib": "qcow2"} {
		packed, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return figures, err
		}
		image := source{digest: fmt.Sprintf("%x", sha256.Sum256(packed)), format: format}
		image.url = fmt.Sprintf("https://%s/%s#sha256=%s", served.address, name, image.digest)
		var seeding, converting, ratios []float64
		for i := range min(n, 5) + 1 {
			seeds, converts, err := b.seedOne(ctx, fmt.Sprintf("seed-%s-%d", name, i), image)
			if err != nil {
				return figures, err
			}
			if i > 0 { // the first has the image pulled
				seeding, converting, ratios = append(seeding, seeds.Seconds()), append(converting, converts.Seconds()), append(ratios, seeds.Seconds()/converts.Seconds())
			}
		}
		figures = append(figures,
			of("seed_ratio_"+name, "x", 1.25, "qemu-img convert to such a claim, and sync", ratios),
			of("seed_"+name, "s", 0, "", seeding),
			of("seed_qemu_img_"+name, "s", 0, "", converting))
	}
	return figures, nil
}

const seededDisk = 512 * mebi

// source is an image, and where the node keeps it.
type source struct{ url, digest, format string }

func (b *bench) seedOne(ctx context.Context, name string, image source) (seeds, converts time.Duration, err error) {
	claim, pod := b.claim(name, "1Gi"), b.pod(name)
	mount(pod, claim)
	if err := b.Create(ctx, claim); err != nil {
		return 0, 0, err
	}
	if _, err := timed(ctx, b, &corev1.PodList{}, pod, isReady); err != nil { // its volume is made
		return 0, 0, err
	}
	if _, err := gone(ctx, b, &corev1.PodList{}, pod); err != nil {
		return 0, 0, err
	}
	var starts [2]time.Duration
	for i := range starts {
		vm := b.guest(fmt.Sprintf("%s-%d", name, i))
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", Image: image.url, PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: claim.Name}}}
		if starts[i], err = timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning); err != nil {
			return 0, 0, err
		}
		settle()
		if _, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm); err != nil {
			return 0, 0, err
		}
	}
	pod = b.pod(name)
	mount(pod, claim)
	if _, err := timed(ctx, b, &corev1.PodList{}, pod, isReady); err != nil {
		return 0, 0, err
	}
	inVolume := fmt.Sprintf("cd /var/lib/kubelet/pods/%s/volumes/kubernetes.io~csi/*/mount; ", pod.UID)
	if _, err := b.onNode(ctx, "", "sh", "-ec", inVolume+"rm disk.img; sync -f ."); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	_, err = b.onNode(ctx, "", "sh", "-ec", inVolume+
		fmt.Sprintf("qemu-img convert -f %s -O raw /var/lib/berth/images/%s/disk.%[1]s disk.img; sync disk.img", image.format, image.digest))
	converts = time.Since(began)
	_, ended := gone(ctx, b, &corev1.PodList{}, pod)
	return starts[0] - starts[1], converts, errors.Join(err, ended, b.Delete(ctx, claim))
}
