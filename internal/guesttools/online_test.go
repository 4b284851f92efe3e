package guesttools

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// devices are those of a small /sys: what each one's file online says.
func devices(t *testing.T) (sys string, states func() map[string]string) {
	t.Helper()
	sys = t.TempDir()
	for path, state := range map[string]string{
		"cpu/cpu1": "0\n", "cpu/cpu2": "1\n", "memory/memory32": "0\n", "memory/memory33": "0\n", "memory/memory4": "1\n",
	} {
		path = sys + "/devices/system/" + path
		if err := errors.Join(os.MkdirAll(path, 0o755), os.WriteFile(path+"/online", []byte(state), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return sys, func() map[string]string {
		all := map[string]string{}
		paths, _ := filepath.Glob(sys + "/devices/system/*/*/online")
		for _, path := range paths {
			state, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.Base(filepath.Dir(path))] = string(state)
		}
		return all
	}
}

func TestWhatIsHotAddedComesOnline(t *testing.T) {
	sys, states := devices(t)
	ports := 0
	for _, event := range []string{
		"add@/devices/system/cpu/cpu1", "add@/devices/system/memory/memory33", "add@/devices/system/memory/memory4", "add@/devices/system/cpu/cpu9",
		"remove@/devices/system/memory/memory32", "add@/devices/system/node/node0", "", "@", "add@", "add@/devices/system/cpu/cpu1/../../x",
		"add@/devices/pci0000:00/0000:00:05.0/virtio2/virtio-ports/vport2p2", "change@/devices/pci0000:00/0000:00:05.0/virtio2/virtio-ports/vport2p2",
	} {
		heard(sys, event, func() { ports++ })
	}
	want := map[string]string{"cpu1": "1", "cpu2": "1\n", "memory32": "0\n", "memory33": "1", "memory4": "1\n"}
	if diff := cmp.Diff(want, states()); diff != "" || ports != 2 {
		t.Errorf("%d ports\n%s", ports, diff)
	}
	onlineAll(sys)
	want["memory32"] = "1"
	if diff := cmp.Diff(want, states()); diff != "" {
		t.Error(diff)
	}
}
