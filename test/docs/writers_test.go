package docs

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/test/env"
)

// TestWriters finds each field and condition of a VirtualMachine's status in docs/architecture.md, with the process that
// writes it: the agent what the plan owns, the operator all else, of some each a part.
func TestWriters(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(env.Root(), "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	written := map[string][]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| VirtualMachine, (?:status|conditions) \| (.*) \| (.*) \|$`).FindAllStringSubmatch(string(raw), -1) {
		for i, writer := range []string{"operator", "agent"} {
			written[writer] = append(written[writer], regexp.MustCompile(`\w+`).FindAllString(row[i+1], -1)...)
		}
	}

	full := v1alpha1.VirtualMachineStatus{}
	for _, field := range reflect.ValueOf(&full).Elem().Fields() {
		switch kind := field.Kind(); {
		case kind == reflect.Pointer:
			field.Set(reflect.New(field.Type().Elem()))
		case kind == reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		case kind == reflect.String:
			field.SetString("x")
		default:
			field.SetInt(1)
		}
	}
	full.Disks[0] = v1alpha1.DiskStatus{Name: "data", ClaimName: "data", Size: new(resource.MustParse("1Gi"))} // each writes its part of one
	full.Conditions = nil
	for _, c := range []string{
		v1alpha1.ConditionScheduled, v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning, v1alpha1.ConditionGuestAgentConnected,
		v1alpha1.ConditionReady, v1alpha1.ConditionStalled, v1alpha1.ConditionUpToDate,
	} {
		full.Conditions = append(full.Conditions, metav1.Condition{Type: c})
	}
	owned := plan.Owned(&full)
	owns := map[string][]string{}
	add := func(name string, agents, whole bool) {
		if agents {
			owns["agent"] = append(owns["agent"], name)
		}
		if !whole {
			owns["operator"] = append(owns["operator"], name)
		}
	}
	for field, value := range reflect.ValueOf(owned).Elem().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "conditions" {
			whole := reflect.ValueOf(&full).Elem().FieldByIndex(field.Index)
			add(name, !value.IsZero(), reflect.DeepEqual(value.Interface(), whole.Interface()))
		}
	}
	for _, c := range full.Conditions {
		agents := slices.Contains(owned.Conditions, c)
		add(c.Type, agents, agents)
	}
	for _, writer := range []string{"operator", "agent"} {
		slices.Sort(written[writer])
		slices.Sort(owns[writer])
		if diff := cmp.Diff(written[writer], owns[writer]); diff != "" {
			t.Errorf("what the %s writes (-document +code):\n%s", writer, diff)
		}
	}
}
