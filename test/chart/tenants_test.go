package chart

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/test/env"
)

// tenants: what the cluster's own roles give to users of a namespace, together with Berth's.
func tenants(t *testing.T, config *rest.Config, c client.Client) {
	const userData = "#cloud-config\n"
	home, elsewhere := env.NewWorld(t, c), env.NewWorld(t, c)
	vm := func(w *env.World) *v1alpha1.VirtualMachine {
		return &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
	}
	for _, w := range []*env.World{home, elsewhere} {
		web := vm(w)
		web.Spec.Memory.Size.Set(1 << 30)
		web.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: "a"}}
		web.Spec.CloudInit = &v1alpha1.CloudInit{UserData: new(userData)}
		for _, o := range []client.Object{web, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}} {
			if err := c.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	home.Host("host", v1alpha1.VirtualMachineHostStatus{Acceleration: v1alpha1.AccelerationKVM})
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "host"}}

	// No controller adds roles up here: a user has the parts of his role, and of those that it holds.
	for user, holds := range map[string][]string{"viewer": {"view"}, "editor": {"edit", "view"}, "owner": {"admin", "edit", "view"}} {
		for _, role := range holds {
			for _, part := range partsOf(t, c, role) {
				binding := rbacObject("RoleBinding", user+"-"+part, map[string]any{
					"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": part},
					"subjects": []any{map[string]any{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}},
				})
				binding.SetNamespace(home.Namespace)
				if err := client.IgnoreAlreadyExists(c.Create(t.Context(), binding)); err != nil { // a part of two
					t.Fatal(err)
				}
			}
		}
	}
	editor, owner, viewer := as(t, config, "editor"), as(t, config, "owner"), as(t, config, "viewer")

	reads := func(who client.Client, o client.Object, w *env.World) func() error {
		return func() error { return who.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: "web"}, o) }
	}
	changes := func(who client.Client, w *env.World) func() error {
		return func() error {
			return who.Patch(t.Context(), vm(w), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`)))
		}
	}
	deletes := func(who client.Client, o client.Object) func() error {
		return func() error { return who.Delete(t.Context(), o, client.DryRunAll) }
	}
	repair := rbacObject("Role", "repair", map[string]any{"rules": []any{
		map[string]any{"apiGroups": []any{"berth.dev"}, "resources": []any{"virtualmachines"}, "verbs": []any{"repair"}},
	}})
	repair.SetNamespace(home.Namespace)
	var seen v1alpha1.VirtualMachine
	env.Eventually(t, "the roles to hold", func() bool { // the API server learns of them by a watch
		return changes(editor, home)() == nil && changes(owner, home)() == nil && reads(viewer, &seen, home)() == nil
	})
	if data := seen.Spec.CloudInit.UserData; *data != userData {
		t.Errorf("a viewer reads the user data %q", *data)
	}
	reaches(t, config, c, home, elsewhere, &seen)
	for name, tt := range map[string]struct {
		does    func() error
		allowed bool
	}{
		"an editor deletes a VirtualMachine":            {deletes(editor, vm(home)), true},
		"reads the namespace's Secrets":                 {reads(editor, &corev1.Secret{}, home), true},
		"reads the VirtualMachine of another namespace": {reads(editor, vm(elsewhere), elsewhere), false},
		"changes it":                             {changes(editor, elsewhere), false},
		"deletes it":                             {deletes(editor, vm(elsewhere)), false},
		"reads the Secrets there":                {reads(editor, &corev1.Secret{}, elsewhere), false},
		"writes a status":                        {func() error { return editor.Status().Update(t.Context(), home.VM("web")) }, false},
		"lifts a quota":                          {deletes(editor, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: home.Namespace, Name: "any"}}), false},
		"reads a host":                           {func() error { return editor.Get(t.Context(), client.ObjectKeyFromObject(host), host) }, false},
		"deletes a host":                         {deletes(editor, host), false},
		"an owner gives himself the verb repair": {func() error { return owner.Create(t.Context(), repair) }, false},
		"lifts a quota, too":                     {deletes(owner, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: home.Namespace, Name: "any"}}), false},
		"a viewer changes a VirtualMachine":      {changes(viewer, home), false},
		"reads a Secret":                         {reads(viewer, &corev1.Secret{}, home), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.does(); tt.allowed && err != nil || !tt.allowed && !apierrors.IsForbidden(err) {
				t.Errorf("%v, allowed should be %t", err, tt.allowed)
			}
		})
	}
}

// reaches: who gets into a guest is whom the cluster's own roles let into its berth. It is asked as kubectl auth can-i asks,
// and then tried on a berth without a node, of which all that is allowed ends in another answer than Forbidden.
func reaches(t *testing.T, config *rest.Config, c client.Client, home, elsewhere *env.World, vm *v1alpha1.VirtualMachine) {
	pod, err := berth.PodFor(berth.Input{VM: vm, Options: berth.Options{ShimImage: "shim", CPURequest: resource.MustParse("100m")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	const all, reader = "editor owner", "viewer editor owner"
	for _, way := range []struct{ verb, resource, does, query, users string }{
		{"get", "pods/log", "reads the console", "", reader},
		{"create", "pods/attach", "types into the console", "?stdin=true&stdout=true&tty=true", all},
		{"create", "pods/exec", "runs a command in the guest, as its root", "?command=id&stdout=true", all},
		{"create", "pods/portforward", "sees the screen, and reaches the guest's ports", "?ports=5900", all},
	} {
		_, sub, _ := strings.Cut(way.resource, "/")
		for _, user := range []string{"viewer", "editor", "owner", "stranger"} {
			for _, w := range []*env.World{home, elsewhere} {
				want := w == home && slices.Contains(strings.Fields(way.users), user)
				review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
					User: user, Groups: []string{"system:authenticated"},
					ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: way.verb, Resource: "pods", Subresource: sub, Namespace: w.Namespace, Name: "web"},
				}}
				if err := c.Create(t.Context(), review); err != nil {
					t.Fatal(err)
				}
				if review.Status.Allowed != want {
					t.Errorf("%s %s in %s (%s %s): %t, want %t", user, way.does, w.Namespace, way.verb, way.resource, review.Status.Allowed, want)
				}
				method := map[string]string{"get": http.MethodGet, "create": http.MethodPost}[way.verb]
				if status := calls(t, config, user, method, "/api/v1/namespaces/"+w.Namespace+"/pods/web/"+sub+way.query); (status != http.StatusForbidden) != want {
					t.Errorf("%s %s in %s: the API server answers %d, allowed should be %t", user, way.does, w.Namespace, status, want)
				}
			}
		}
	}
}

// calls is the status that the API server answers to a request of a user.
func calls(t *testing.T, config *rest.Config, user, method, path string) int {
	t.Helper()
	config = rest.CopyConfig(config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
	https, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer https.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, config.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := https.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

// partsOf are the roles that make up one of the cluster's own.
func partsOf(t *testing.T, c client.Client, role string) (parts []string) {
	t.Helper()
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("rbac.authorization.k8s.io/v1")
	list.SetKind("ClusterRoleList")
	if err := c.List(t.Context(), list, client.MatchingLabels{"rbac.authorization.k8s.io/aggregate-to-" + role: "true"}); err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Items {
		parts = append(parts, o.GetName())
	}
	return parts
}
