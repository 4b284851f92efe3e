package chart

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// keptDisks: a disk may be changed as long as it does not exist, and after that it may only grow.
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
		{"more of it", `{"name":"root","image":"a","size":"2Gi"},` + tmp, ""},
		{"less of it", `{"name":"root","image":"a","size":"1023Mi"},` + tmp, "never shrinks"},
		{"less of an ephemeral disk", root + `,{"name":"tmp","image":"a","size":"1Mi","ephemeral":true}`, ""},
		{"another bus, cache, thread, serial number and limits", `{"name":"root","image":"a","bus":"SCSI","cache":"None","ioThread":true,"serial":"A","limits":{"iops":5}},` + tmp, ""},
		{"a CD-ROM more", root + "," + tmp + `,{"name":"cd","type":"CDROM","image":"b"}`, ""},
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
	cdroms(t, c)
	claims(t, c)
	tooMany := `{"disks":[{"name":"root","image":"a","size":"1Gi"}`
	for i := range 31 {
		tooMany += fmt.Sprintf(`,{"name":"old%d","size":"1Gi","detached":true}`, i)
	}
	seen(tooMany + "]}")
	for disks, says := range map[string]string{
		root: "",
		root + `,{"name":"old7","empty":{},"size":"1Gi"}`:    "", // it comes back
		root + `,{"name":"old7","image":"a","size":"1Gi"}`:   "keeps its kind",
		root + `,{"name":"old7","empty":{},"size":"1023Mi"}`: "never shrinks",
		root + `,{"name":"old7","type":"CDROM"}`:             "a CD-ROM a CD-ROM",
		root + "," + tmp:                                     "",
		root + "," + tmp + `,{"name":"more","image":"a"}`:    "name in removeDisks",
	} {
		if err := try(`{"disks":[` + disks + `]}`); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", disks, err, says)
		}
	}
	// The disk was made just when the spec changed.
	seen(`{"disks":[{"name":"root","image":"z","size":"5Gi"}]}`)
	if err := try(`{"state":"Stopped"}`); err != nil {
		t.Errorf("a spec whose disks do not change was refused: %v", err)
	}
}

// cdroms: their media change as they like, and they stay CD-ROMs.
func cdroms(t *testing.T, c client.Client) {
	w := env.NewWorld(t, c)
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
	const root, cd = `{"name":"root","image":"a"}`, `{"name":"cd","type":"CDROM","image":"a"}`
	if err := yaml.Unmarshal([]byte(`{"memory":{"size":"1Gi"},"disks":[`+root+","+cd+`]}`), &vm.Spec); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	status := `{"status":{"disks":[{"name":"root","image":"a","size":"1Gi"},{"name":"cd","image":"a","size":"1Gi","ephemeral":true}]}}`
	if err := c.Status().Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(status))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, disks, says string }{
		{"another medium", root + `,{"name":"cd","type":"CDROM","image":"b"}`, ""},
		{"no medium", root + `,{"name":"cd","type":"CDROM"}`, ""},
		{"another bus", root + `,{"name":"cd","type":"CDROM","image":"a","bus":"SCSI"}`, ""},
		{"no CD-ROM", root, ""},
		{"a disk instead", root + `,{"name":"cd","image":"a"}`, "a CD-ROM a CD-ROM"},
		{"a CD-ROM instead of a disk", `{"name":"root","image":"a","type":"CDROM"},` + cd, "a disk stays a disk"},
		{"the type, written or not", `{"name":"root","image":"a","type":"Disk"},` + cd, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := c.Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"disks":[`+tt.disks+`]}}`)), client.DryRunAll)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
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
