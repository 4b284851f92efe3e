package e2e

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	ignitionConfig = `{"ignition": {"version": "3.4.0"}, "passwd": {"users": [{"name": "core"}]}}`
	networkConfig  = "version: 2 # by a Secret"
	firmware       = "/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw"
)

// TestFirstBoot: guests find what is to set them up, inline or in Secrets, where Ignition and cloud-init look for it.
func TestFirstBoot(t *testing.T) {
	l := start(t)
	l.kubectl("", "create", "secret", "generic", "core", "--from-literal=userdata="+ignitionConfig, "--from-literal=networkdata="+networkConfig)
	guests := map[string]struct{ spec, file, holds string }{
		"secret":  {"ignition: {secretRef: {name: core}}", firmware, ignitionConfig},
		"inline":  {`ignition: {config: '{"a": 1}'}`, firmware, `{"a": 1}`},
		"network": {"cloudInit: {networkDataSecretRef: {name: core, key: networkdata}}", "/run/network-config", networkConfig},
	}
	for name, g := range guests {
		l.apply(strings.Replace(reached, "name: tiny", "name: "+name, 1) + "  " + g.spec + "\n")
	}
	finds := func(name, file, want string) {
		t.Helper()
		l.vm(name, "to have its guest program", hasTools)
		if r := l.exec(name, nil, "cat", file); r.out != want || r.code != 0 {
			t.Errorf("guest %s finds %q (%+v), want %q", name, r.out, r, want)
		}
	}
	for name, g := range guests {
		finds(name, g.file, g.holds)
	}
	uid := string(l.vm("inline", "to be Ready", isReady).UID)
	if shows := l.kubectl("", "get", "pod", "inline", "-o", "yaml"); strings.Contains(shows, `{"a": 1}`) {
		t.Errorf("its berth has the configuration:\n%s", shows)
	}
	l.patch("inline", `{"ignition":{"config":"{\"b\": 2}"}}`)
	l.vm("inline", "to have the change pending, without its text", func(vm *v1alpha1.VirtualMachine) bool {
		return len(vm.Status.PendingChanges) == 1 && vm.Status.PendingChanges[0] == v1alpha1.PendingChange{Path: "ignition.config", Effect: v1alpha1.EffectRestart}
	})
	l.patch("inline", `{"restartedAt":"now"}`)
	l.vm("inline", "to be restarted", func(vm *v1alpha1.VirtualMachine) bool {
		return len(vm.Status.PendingChanges) == 0 && isReady(vm)
	})
	finds("inline", firmware, `{"b": 2}`)

	l.kubectl("", "delete", "vm", "--all")
	l.vm("inline", "to be gone", isGone)
	nothingLeft(l, uid)
}
