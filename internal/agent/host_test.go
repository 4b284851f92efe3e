package agent

import (
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

func TestReady(t *testing.T) {
	sound := libvirtd.HostFacts{LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", KVM: &libvirtd.Virt{}, Emulation: &libvirtd.Virt{}}
	but := func(change func(*libvirtd.HostFacts)) libvirtd.HostFacts {
		facts := sound
		change(&facts)
		return facts
	}
	noKVM := but(func(f *libvirtd.HostFacts) {
		f.KVM, f.WhyNoKVM = nil, errors.New("/dev/kvm is no device")
	})
	for name, c := range map[string]struct {
		facts  libvirtd.HostFacts
		err    error
		kind   v1alpha1.Acceleration
		reason v1alpha1.Reason
		says   string
	}{
		"all is well":         {facts: sound, reason: v1alpha1.ReasonHostReady},
		"no /dev/kvm":         {facts: noKVM, reason: v1alpha1.ReasonKVMUnavailable, says: "/dev/kvm is no device; enable virtualisation"},
		"none, and emulation": {facts: noKVM, kind: v1alpha1.AccelerationEmulation, reason: v1alpha1.ReasonHostReady},
		"no libvirtd":         {err: errors.New("libvirtd does not answer: start it"), reason: v1alpha1.ReasonLibvirtUnreachable, says: "start it"},
		"an old libvirt":      {facts: but(func(f *libvirtd.HostFacts) { f.LibvirtVersion = "7.9.0" }), reason: v1alpha1.ReasonLibvirtTooOld, says: "Berth needs 8.0"},
		"an old QEMU":         {facts: but(func(f *libvirtd.HostFacts) { f.QEMUVersion = "6.1.0" }), reason: v1alpha1.ReasonLibvirtTooOld, says: "Berth needs 6.2"},
		"a directory of Debian's": {
			facts:  but(func(f *libvirtd.HostFacts) { f.StateDirClosed = errors.New("/var/lib/libvirt/qemu has mode 0750") }),
			reason: v1alpha1.ReasonStateDirClosed, says: "mode 0750: let others pass",
		},
		"emulation, and no QEMU": {facts: but(func(f *libvirtd.HostFacts) { f.Emulation = nil }), kind: v1alpha1.AccelerationEmulation, reason: v1alpha1.ReasonLibvirtTooOld, says: "install qemu-system-x86"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{Options: Options{Acceleration: v1alpha1.AccelerationKVM}}
			if c.kind != "" {
				a.Acceleration = c.kind
			}
			got := a.ready(c.facts, c.err)
			if (got.Status == metav1.ConditionTrue) != (c.reason == v1alpha1.ReasonHostReady) || got.Reason != string(c.reason) || !strings.Contains(got.Message, c.says) {
				t.Errorf("%s %s: %s; want %s: %s", got.Status, got.Reason, got.Message, c.reason, c.says)
			}
		})
	}
}
