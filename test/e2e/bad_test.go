package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// bad is something wrong with a VirtualMachine or around it, and what repairs it.
type bad struct {
	name string
	// before makes what surrounds it.
	before func(l *lab)
	// manifest of a VirtualMachine named tiny.
	manifest string
	// condition is not true then, for reason, and its message says what to do in these words. So does an Event.
	condition string
	reason    v1alpha1.Reason
	says      string
	// repair takes the cause away. The guest must then run by itself.
	repair func(l *lab)
}

// recovers applies a bad manifest, has it explained, repairs it and sees the guest run.
func (l *lab) recovers(b bad) {
	l.Helper()
	if b.before != nil {
		b.before(l)
	}
	l.apply(b.manifest)
	l.vm("tiny", fmt.Sprintf("to say %s of %s and of Ready: %s", b.reason, b.condition, b.says), func(vm *v1alpha1.VirtualMachine) bool {
		said := 0
		for _, c := range vm.Status.Conditions {
			if (c.Type == b.condition || c.Type == v1alpha1.ConditionReady) &&
				c.Status != metav1.ConditionTrue && c.Reason == string(b.reason) && strings.Contains(c.Message, b.says) {
				said++
			}
		}
		return said == 2
	})
	if message := l.event("tiny", b.reason); !strings.Contains(message, b.says) {
		l.Errorf("the Event %s says %q, not %q", b.reason, message, b.says)
	}
	b.repair(l)
	l.vm("tiny", "to be Ready once that is repaired", isReady)
}

func run(t *testing.T, cases []bad) {
	t.Helper()
	for _, b := range cases {
		t.Run(b.name, func(t *testing.T) { start(t).recovers(b) })
	}
}

// undo runs a command that cleans up behind a test.
func (l *lab) undo(command ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		l.Errorf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}

func patched(spec string) func(l *lab) {
	return func(l *lab) { l.Helper(); l.patch("tiny", spec) }
}

func TestBadPlacement(t *testing.T) {
	t.Parallel()
	run(t, []bad{
		{
			name: "more memory than any node has", manifest: strings.Replace(tiny, "96Mi", "900Gi", 1),
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonUnschedulable, says: "Insufficient memory",
			repair: patched(`{"memory":{"size":"96Mi"}}`),
		},
		{
			name: "a nodeSelector that fits nothing", manifest: tiny + "  nodeSelector: {disk: golden}\n",
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonUnschedulable, says: "didn't match Pod's node affinity/selector",
			repair: patched(`{"nodeSelector":null}`),
		},
		{
			name: "an annotation that is not allowed", manifest: tiny + "  berth: {annotations: {io.containerd.x: hostile}}\n",
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonBerthRefused, says: "remove it from spec.berth.annotations",
			repair: patched(`{"berth":null}`),
		},
		{
			name: "a quota that is used up", manifest: tiny,
			before:    func(l *lab) { l.kubectl("", "create", "quota", "small", "--hard=limits.memory=64Mi") },
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonBerthRefused, says: "exceeded quota: small",
			repair: func(l *lab) {
				l.kubectl("", "patch", "quota", "small", "-p", `{"spec":{"hard":{"limits.memory":"4Gi"}}}`)
			},
		},
		{
			name: "a stranger's pod of its name", manifest: tiny,
			before:    func(l *lab) { l.apply(stranger) },
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonPodNameTaken, says: "delete that pod",
			repair: func(l *lab) { l.kubectl("", "delete", "pod", "tiny", "--grace-period=1") },
		},
		{
			name:     "a missing Secret",
			manifest: tiny + "  cloudInit: {userDataSecretRef: {name: tiny, key: userdata}}\n",

			condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonSecretMissing, says: "has no key userdata: create it",
			repair: func(l *lab) {
				l.kubectl("", "create", "secret", "generic", "tiny", "--from-literal=userdata=#cloud-config")
			},
		},
		{
			name: "a container that admission adds", manifest: tiny, before: injected,
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonBerthMutated, says: "exempt pods with the label",
			repair: func(l *lab) { l.kubectl("", "delete", "mutatingadmissionpolicy", l.ns) },
		},
	})
}

// stranger is a pod that waits for ever, of the name of the test's VirtualMachine.
const stranger = `
apiVersion: v1
kind: Pod
metadata: {name: tiny}
spec:
  nodeSelector: {disk: golden}
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: stranger
    image: none
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// injected has admission add a container to each pod of the namespace, as a service mesh does.
func injected(l *lab) {
	l.Helper()
	l.mutates("name: mesh", `{op: "add", path: "/spec/containers/-", value: Object.spec.containers{
          name: "mesh", image: "$REGISTRY/lab/pause:1",
          securityContext: Object.spec.containers.securityContext{
            allowPrivilegeEscalation: false,
            capabilities: Object.spec.containers.securityContext.capabilities{drop: ["ALL"]}}}}`)
}

// mutates has admission change each pod of the namespace, so that its manifest shows something, until the test or what it
// returns ends it.
func (l *lab) mutates(shows, patch string) (end func()) {
	l.Helper()
	remove := func() {
		l.undo("kubectl", "delete", "mutatingadmissionpolicy,mutatingadmissionpolicybinding", l.ns, "--ignore-not-found")
	}
	l.Cleanup(remove)
	// Nothing tells when the API server heeds a policy, and when no more, but what it would do with a pod.
	probe := strings.Replace(stranger, "name: tiny", "name: probe", 1)
	heeded := func(want bool) {
		l.Helper()
		for strings.Contains(l.kubectl(probe, "create", "-f", "-", "--dry-run=server", "-o", "yaml"), shows) != want {
			if l.Context().Err() != nil {
				l.Fatalf("the API server heeds the policy: %t", !want)
			}
		}
	}
	l.apply(strings.NewReplacer("$NS", l.ns, "$PATCH", patch).Replace(mutation))
	heeded(true)
	return func() {
		l.Helper()
		remove()
		heeded(false)
	}
}

const mutation = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: $NS}
spec:
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: $NS}}
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  reinvocationPolicy: Never
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: >-
        [JSONPatch$PATCH]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: $NS}
spec: {policyName: $NS}
`

func TestForeignDomain(t *testing.T) {
	l := start(t)
	node := nodes(t)[0]
	name := berth.DomainName(l.ns, "tiny")
	virsh := func(args string) string { l.Helper(); return l.onNode(node, "sh", "-c", "virsh "+args) }
	xml := fmt.Sprintf("<domain type='qemu'><name>%s</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>", name)
	uuid := ""
	l.recovers(bad{
		before: func(l *lab) {
			l.onNode(node, "sh", "-c", fmt.Sprintf(`f=$(mktemp); echo "%s" > $f; virsh define $f; rm $f`, xml))
			l.Cleanup(func() { l.undo("lab", "exec", node, "--", "sh", "-c", "virsh undefine "+name+" 2>/dev/null || true") })
			uuid = virsh("domuuid " + name)
		},
		manifest:  tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n",
		condition: v1alpha1.ConditionRunning, reason: v1alpha1.ReasonDomainNameTaken, says: "rename or undefine it",
		repair: func(l *lab) {
			if now := virsh("domuuid " + name); now != uuid || strings.TrimSpace(virsh("domstate "+name)) != "shut off" {
				l.Errorf("the foreign domain was touched: %s, was %s", now, uuid)
			}
			virsh("undefine " + name)
		},
	})
}
