package v1alpha1

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
)

// Default fills in what the CRD's schema fills in. The API server does so when it reads an object; Berth does so with
// the specs that it has recorded, so that a field with a default that came later changes nothing about them.
func Default(s *VirtualMachineSpec) {
	setDefault(&s.State, StateRunning)
	setDefault(&s.RestartPolicy, RestartAlways)
	setDefault(&s.TerminationGracePeriodSeconds, new(int64(60)))
	setDefault(&s.CPU.Cores, 1)
	setDefault(&s.CPU.Sockets, 1)
	setDefault(&s.CPU.Threads, 1)
	setDefault(&s.CPU.Model, "host-model")
	if k := s.Kernel; k != nil {
		setDefault(&k.KernelPath, "/boot/vmlinuz")
		setDefault(&k.CommandLine, "console=ttyS0")
	}
	if s.Networks == nil {
		s.Networks = []Network{{Name: "default", Pod: &PodNetwork{}}}
	}
	setDefault(&s.VolumeClaimRetention, VolumeClaimRetain)
	setDefault(&s.GuestTools, GuestToolsOffered)
	setDefault(&s.ImagePullPolicy, corev1.PullIfNotPresent)
	if s.Display != nil {
		setDefault(&s.Display.Type, DisplayVGA)
	}
	var refs []*SecretKeyReference
	if c := s.CloudInit; c != nil {
		refs = append(refs, c.UserDataSecretRef, c.NetworkDataSecretRef)
	}
	if s.Ignition != nil {
		refs = append(refs, s.Ignition.SecretRef)
	}
	for _, ref := range refs {
		if ref != nil {
			setDefault(&ref.Key, "userdata")
		}
	}
	for _, p := range []*Probe{s.ReadinessProbe, s.LivenessProbe, s.StartupProbe} {
		if p != nil && p.GRPC != nil {
			setDefault(&p.GRPC.Service, new(""))
		}
	}
}

func setDefault[T comparable](field *T, value T) { *field = cmp.Or(*field, value) }
