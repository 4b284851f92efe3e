package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// TestTheCacheHoldsNoTexts of VirtualMachines that start no guest, and those of others whole. What is pending for them stays
// what it is.
func TestTheCacheHoldsNoTexts(t *testing.T) {
	const text, most = 48 << 10, 4 << 10 // bytes
	for name, tt := range map[string]struct {
		change func(*v1alpha1.VirtualMachine)
		texts  bool
	}{
		"running":  {func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StateRunning }, true},
		"paused":   {func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StatePaused }, true},
		"no word":  {func(*v1alpha1.VirtualMachine) {}, true},
		"stopped":  {func(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StateStopped }, false},
		"deleting": {func(vm *v1alpha1.VirtualMachine) { vm.DeletionTimestamp = new(metav1.NewTime(time.Now())) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{
				Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("a", text)},
			}}
			vm.Spec.CloudInit = &v1alpha1.CloudInit{UserData: new(strings.Repeat("u", text)), NetworkData: new(strings.Repeat("n", text))}
			vm.Spec.SSHAuthorizedKeys = []string{"ssh-rsa " + strings.Repeat("A", 8000)}
			tt.change(vm)
			record, err := berth.Record(&vm.Spec)
			if err != nil {
				t.Fatal(err)
			}
			user := *vm.Spec.CloudInit.UserData
			if _, err := trimVM(vm); err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(vm)
			if err != nil {
				t.Fatal(err)
			}
			if has := *vm.Spec.CloudInit.UserData == user; has != tt.texts || !has && len(raw) > most || len(raw) > 3*text {
				t.Errorf("the cache has %d bytes, and the user data: %v, want %v", len(raw), has, tt.texts)
			}
			if changes, err := berth.Changes(record, &vm.Spec); err != nil || len(changes) > 0 {
				t.Errorf("pending are %v, %v", changes, err)
			}
		})
	}
}
