package chart

import (
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// disksFinalizer: nobody but the operator, and who may repair, leaves a VirtualMachine's disks on a node for good.
func disksFinalizer(t *testing.T, config *rest.Config, c client.Client) {
	w := env.NewWorld(t, c)
	for kind, content := range map[string]map[string]any{ // all that a namespace can give
		"Role": {"rules": []any{map[string]any{"apiGroups": []any{"berth.dev"}, "resources": []any{"*"}, "verbs": []any{"*"}}}},
		"RoleBinding": {
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all"},
			"subjects": []any{map[string]any{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "tenant"}},
		},
	} {
		o := rbacObject(kind, "all", content)
		o.SetNamespace(w.Namespace)
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	tenant := as(t, config, "tenant")
	operator := as(t, config, "system:serviceaccount:"+namespace+":berth-operator")
	admin := as(t, config, "root", "system:masters")

	vm := func(name string) *v1alpha1.VirtualMachine {
		return &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
	}
	finalizers := func(who client.Client, name, list string) error {
		return who.Patch(t.Context(), vm(name), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":`+list+`}}`)))
	}
	make := func(name, node, list string) {
		o := vm(name)
		o.Spec.Memory.Size.Set(1 << 30)
		o.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: "a"}}
		err := tenant.Create(t.Context(), o)
		if err == nil && node != "" {
			status := kube.StatusWriter{Client: c, Manager: kube.OperatorManager}
			_, err = status.Write(t.Context(), o, &v1alpha1.VirtualMachineStatus{NodeName: node}, nil)
		}
		if err == nil {
			err = finalizers(operator, name, list)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, says string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, says)
		}
	}
	allowed := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	const ours = `["` + berth.DiskFinalizer + `"]`
	make("web", "n1", ours)
	env.Eventually(t, "the policy to hold", func() bool { // the API server learns of one by a watch
		make("probe", "n1", "[]")
		err := tenant.Delete(t.Context(), vm("probe"))
		if err != nil {
			allowed("deleting what nobody keeps", admin.Delete(t.Context(), vm("probe")))
		}
		return err != nil
	})

	allowed("replacing a manifest that has no finalizer", finalizers(tenant, "web", "null"))
	refused("deleting it at once", "wait until the operator", tenant.Delete(t.Context(), vm("web")))
	allowed("putting it back", finalizers(operator, "web", ours))
	allowed("deleting it", tenant.Delete(t.Context(), vm("web")))
	refused("taking the finalizer off", "the verb repair", finalizers(tenant, "web", "null"))
	allowed("changing labels meanwhile", tenant.Patch(t.Context(), vm("web"), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`))))
	allowed("the operator lets it go", finalizers(operator, "web", "null"))

	make("given-up", "n1", ours)
	allowed("deleting it", tenant.Delete(t.Context(), vm("given-up")))
	allowed("an administrator gives it up", finalizers(admin, "given-up", "null"))

	make("never-placed", "", "[]")
	allowed("deleting what has no disks", tenant.Delete(t.Context(), vm("never-placed")))
}
