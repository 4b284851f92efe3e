package chart

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// keptDisks: a disk may be changed as long as it does not exist, and never after.
func keptDisks(t *testing.T, c client.Client) {
	w := env.NewWorld(t, c)
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
	const root, tmp = `{"name":"root","image":"a","size":"1Gi"}`, `{"name":"tmp","image":"a","ephemeral":true}`
	if err := yaml.Unmarshal([]byte(`{"memory":{"size":"1Gi"},"disks":[`+root+","+tmp+`]}`), &vm.Spec); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	try := func(spec string) error {
		return c.Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":`+spec+`}`)), client.DryRunAll)
	}
	seen := func(status string) {
		t.Helper()
		if err := c.Status().Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"status":`+status+`}`))); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, disks string
		says        string // once the disks exist; "" where it is allowed still
	}{
		{"another image", `{"name":"root","image":"b","size":"1Gi"},` + tmp, "keeps the image"},
		{"another size", `{"name":"root","image":"a","size":"2Gi"},` + tmp, "keeps its size"},
		{"not kept any more", `{"name":"root","image":"a","size":"1Gi","ephemeral":true},` + tmp, "stays so"},
		{"the same size, written otherwise", `{"name":"root","image":"a","size":"1024Mi"},` + tmp, ""},
		{"no size any more", `{"name":"root","image":"a"},` + tmp, ""},
		{"a claim instead", `{"name":"root","persistentVolumeClaim":{"claimName":"a"},"image":"a","size":"1Gi"},` + tmp, "keeps its kind"},
		{"a blank one instead", `{"name":"root","empty":{},"size":"1Gi"},` + tmp, "keeps the image"},
		{"another image of an ephemeral disk", root + `,{"name":"tmp","image":"b","ephemeral":true}`, ""},
		{"one more disk", root + "," + tmp + `,{"name":"more","image":"b"}`, ""},
		{"another order", tmp + "," + root, ""},
		{"one disk less", tmp, ""},
		{"a disk of another name instead", `{"name":"other","image":"b"},` + tmp, ""},
	}
	for _, tt := range tests {
		if err := try(`{"disks":[` + tt.disks + `]}`); err != nil {
			t.Errorf("%s was refused before there was a disk: %v", tt.name, err)
		}
	}
	seen(`{"disks":[{"name":"root","image":"a","size":"1Gi"},{"name":"tmp","image":"a","size":"1Gi","ephemeral":true}]}`)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := try(`{"disks":[` + tt.disks + `]}`)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
	claims(t, c)
	// The disk was made just when the spec changed.
	seen(`{"disks":[{"name":"root","image":"z","size":"5Gi"}]}`)
	if err := try(`{"state":"Stopped"}`); err != nil {
		t.Errorf("a spec whose disks do not change was refused: %v", err)
	}
}

// claims: a disk that is on a claim stays there, and grows.
func claims(t *testing.T, c client.Client) {
	w := env.NewWorld(t, c)
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
	const blank = `{"name":"blank","empty":{},"size":"1Gi"}`
	const data = `{"name":"data","persistentVolumeClaim":{"claimName":"a"},"image":"i","size":"2Gi"}`
	if err := yaml.Unmarshal([]byte(`{"memory":{"size":"1Gi"},"disks":[`+blank+","+data+`]}`), &vm.Spec); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	status := `{"status":{"disks":[{"name":"blank","size":"1Gi"},{"name":"data","claimName":"a","usedClaimUID":"1","size":"2Gi"}]}}`
	if err := c.Status().Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(status))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, disks, says string }{
		{"an image for a blank disk", `{"name":"blank","image":"b","size":"1Gi"},` + data, "keeps its kind"},
		{"another claim", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"b"},"image":"i","size":"2Gi"}`, "keeps its claim"},
		{"no claim any more", blank + `,{"name":"data","image":"i","size":"2Gi"}`, "keeps its claim"},
		{"another seed", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"a"},"image":"j","size":"2Gi"}`, "keeps its claim, and its image or none"},
		{"less of it", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"a"},"image":"i","size":"1Gi"}`, "never shrinks"},
		{"more of it", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"a"},"image":"i","size":"3Gi"}`, ""},
		{"all of it", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"a"},"image":"i"}`, ""},
		{"another access", blank + `,{"name":"data","persistentVolumeClaim":{"claimName":"a"},"size":"2Gi","access":"Shared"}`, ""},
		{"one disk less", blank, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := c.Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"disks":[`+tt.disks+`]}}`)), client.DryRunAll)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}
