package e2e

import (
	"fmt"
	"os"
	"strings"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
)

// tenantRoles are all that a cluster gives in a namespace: the role of its administrator, and what vertical autoscalers
// and kubectl debug need.
const tenantRoles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: admin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: $USER}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pods}
rules: [{apiGroups: [""], resources: [pods/resize, pods/ephemeralcontainers], verbs: [get, patch, update]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pods}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: $USER}]
`

// tenant is a user who administers the test's namespace, and has no rights elsewhere.
type tenant struct {
	*lab
	user string
	api  client.Client // as that user
}

func (l *lab) tenant() tenant {
	l.Helper()
	user := "tenant-" + l.ns
	l.apply(strings.ReplaceAll(tenantRoles, "$USER", user))
	config := restConfig(l)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	return tenant{l, user, clientOf(l, config)}
}

// kubectlAs runs kubectl as the tenant; it says what went wrong, also in the API server's words.
func (u tenant) kubectlAs(stdin string, args ...string) error {
	_, err := u.tryKubectl(stdin, append([]string{"--as=" + u.user}, args...)...)
	return err
}

// kubectlDoes is that for a list of attempts.
func (u tenant) kubectlDoes(args ...string) func() error {
	return func() error { return u.kubectlAs("", args...) }
}

func restConfig(l *lab) *rest.Config {
	l.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		l.Fatal(err)
	}
	return config
}

func clientOf(l *lab, config *rest.Config) client.Client {
	l.Helper()
	scheme := kube.Scheme()
	if err := policyv1.AddToScheme(scheme); err != nil {
		l.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// attempt is something that somebody tries, and what the refusal says; "" where it is allowed.
type attempt struct {
	name string
	does func() error
	says string
}

// attempts has all of them tried.
func (l *lab) attempts(list ...attempt) {
	l.Helper()
	refused := 0
	for _, a := range list {
		err := a.does()
		if a.says == "" && err != nil || a.says != "" && (err == nil || !strings.Contains(err.Error(), a.says)) {
			l.Errorf("%s: %v, want %q", a.name, err, a.says)
		}
		if a.says != "" && err != nil {
			refused++
		}
	}
	l.Logf("%d of %d attempts were refused", refused, len(list))
}

// life is what changes when anything happens to a guest that is Ready: its QEMU, its berth, how often it was restarted and
// reset, and since when it has been Ready.
func (l *lab) life(name string) string {
	l.Helper()
	vm := l.vm(name, "to be Ready", isReady)
	return fmt.Sprintf("QEMU %v, berth %s, %d restarts, %d resets, Ready since %s", qemus(string(vm.UID)), vm.Status.Berth.PodUID,
		vm.Status.Restarts, vm.Status.Resets, meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady).LastTransitionTime)
}

// goesOn remembers a guest that is Ready. What it returns fails the test unless the guest has run on untouched until then.
func (l *lab) goesOn(name string) func(through string) {
	l.Helper()
	before := l.life(name)
	return func(through string) {
		l.Helper()
		if now := l.life(name); now != before {
			l.Errorf("the guest %s did not run on through %s: it has %s; it had %s", name, through, now, before)
		}
	}
}
