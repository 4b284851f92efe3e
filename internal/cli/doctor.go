package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Kinds that doctor looks at.
var (
	crdKind        = schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
	deploymentKind = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	daemonSetKind  = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DaemonSet"}
	bindingKind    = schema.GroupVersionKind{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding"}
)

// policies are the chart's, each with what is open without it.
var policies = map[string]string{
	"berth-agent-guests":    "an agent could write the status of another node's guests",
	"berth-agent-host":      "an agent could write for another node",
	"berth-agent-events":    "an agent could write any Event",
	"berth-berths":          "tenants could change the pods of guests",
	"berth-disks":           "changes of kept disks are not refused",
	"berth-disks-finalizer": "disks of deleted VirtualMachines could stay behind",
}

// patient is a doctor's list of what was looked at.
type patient struct {
	*session
	isIll bool
}

func (s *session) doctor() *cobra.Command {
	return &cobra.Command{
		Use:               "doctor",
		Short:             "Check Berth in this cluster and namespace; the exit code is 1 if anything is wrong",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.connect(); err != nil {
				return err
			}
			p := &patient{session: s}
			for _, check := range []func(context.Context) error{p.crds, p.operator, p.agents, p.hosts, p.policies, p.space, p.guests} {
				if err := check(cmd.Context()); err != nil {
					return err
				}
			}
			if p.isIll {
				return exitCode(1)
			}
			return nil
		},
	}
}

func (p *patient) ok(format string, args ...any) {
	fmt.Fprintln(p.Out, "ok     "+clean(fmt.Sprintf(format, args...)))
}

func (p *patient) wrong(what, todo string) {
	p.isIll = true
	fmt.Fprintln(p.Out, "WRONG  "+clean(what)+": "+clean(todo))
}

// unseen takes an error away that only says that this user may not look, and notes it.
func (p *patient) unseen(what string, err error) error {
	if apierrors.IsForbidden(err) {
		fmt.Fprintf(p.Out, "?      you may not see %s: an administrator can\n", what)
		return nil
	}
	return err
}

func (p *patient) find(ctx context.Context, kind schema.GroupVersionKind, options ...client.ListOption) ([]unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	kind.Kind += "List"
	list.SetGroupVersionKind(kind)
	err := p.api.List(ctx, list, options...)
	return list.Items, err
}

func (p *patient) crds(ctx context.Context) error {
	for _, name := range []string{"virtualmachines.berth.dev", "virtualmachinehosts.berth.dev"} {
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(crdKind)
		err := p.api.Get(ctx, client.ObjectKey{Name: name}, crd)
		switch {
		case apierrors.IsNotFound(err):
			p.wrong("CRD "+name+" is missing", "install Berth's chart")
		case err != nil:
			return p.unseen("CRDs", err)
		default:
			versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
			if !slices.ContainsFunc(versions, func(v any) bool {
				version, _ := v.(map[string]any)
				return version["name"] == v1alpha1.GroupVersion.Version && version["served"] == true
			}) {
				p.wrong("CRD "+name+" does not serve "+v1alpha1.GroupVersion.Version, "install the chart of this kubectl-vm's version, or the kubectl-vm of the chart's")
				continue
			}
			p.ok("CRD %s", name)
		}
	}
	return nil
}

func (p *patient) operator(ctx context.Context) error {
	found, err := p.find(ctx, deploymentKind, client.MatchingLabels{"app.kubernetes.io/name": "berth-operator"})
	if err != nil {
		return p.unseen("Deployments of all namespaces", err)
	}
	if len(found) == 0 {
		p.wrong("there is no operator", "install Berth's chart")
	}
	for _, d := range found {
		if ready, _, _ := unstructured.NestedInt64(d.Object, "status", "readyReplicas"); ready == 0 {
			p.wrong("the operator is not ready", fmt.Sprintf("kubectl -n %s describe pods -l app.kubernetes.io/name=berth-operator", d.GetNamespace()))
			continue
		}
		p.ok("operator %s", versionOf(&d))
	}
	return nil
}

// versionOf is the tag of a workload's image.
func versionOf(workload *unstructured.Unstructured) string {
	containers, _, _ := unstructured.NestedSlice(workload.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		container, _ := c.(map[string]any)
		image, _ := container["image"].(string)
		name, _, _ := strings.Cut(image, "@")
		return name[strings.LastIndex(name, ":")+1:]
	}
	return ""
}

func (p *patient) agents(ctx context.Context) error {
	found, err := p.find(ctx, daemonSetKind, client.MatchingLabels{"app.kubernetes.io/name": "berth-agent"})
	if err != nil {
		return p.unseen("DaemonSets of all namespaces", err)
	}
	if len(found) == 0 {
		p.wrong("there are no agents", "install Berth's chart")
	}
	for _, d := range found {
		wanted, _, _ := unstructured.NestedInt64(d.Object, "status", "desiredNumberScheduled")
		ready, _, _ := unstructured.NestedInt64(d.Object, "status", "numberReady")
		switch {
		case wanted == 0:
			p.wrong("no node is to have an agent", "change agent.nodeSelector or agent.tolerations in the chart's values")
		case ready < wanted:
			p.wrong(fmt.Sprintf("%d of %d agents are not ready", wanted-ready, wanted), fmt.Sprintf("kubectl -n %s get pods -o wide -l app.kubernetes.io/name=berth-agent", d.GetNamespace()))
		default:
			p.ok("agents %s on %d nodes", versionOf(&d), wanted)
		}
	}
	return nil
}

func (p *patient) hosts(ctx context.Context) error {
	hosts := &v1alpha1.VirtualMachineHostList{}
	if err := p.api.List(ctx, hosts); err != nil {
		return p.unseen("VirtualMachineHosts", err)
	}
	if len(hosts.Items) == 0 {
		p.wrong("no node has reported as a KVM host", "look at the agents' logs")
	}
	versions := map[string]bool{}
	for _, h := range hosts.Items {
		versions[h.Status.AgentVersion] = true
		problems := len(h.Status.Problems)
		for _, problem := range h.Status.Problems {
			p.wrong("host "+h.Name+": "+problem.Name, problem.Message)
		}
		if c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionHostReady); c == nil || c.Status != metav1.ConditionTrue {
			if c == nil {
				c = &metav1.Condition{Reason: "no condition Ready", Message: "its agent has not reported"}
			}
			p.wrong("host "+h.Name+" is not Ready: "+c.Reason, strings.TrimSpace(c.Message+" "+v1alpha1.Reason(c.Reason).Next()))
			problems++
		}
		if problems == 0 {
			p.ok("host %s: %s, libvirt %s, QEMU %s", h.Name, h.Status.Acceleration, h.Status.LibvirtVersion, h.Status.QEMUVersion)
		}
	}
	if len(versions) > 1 {
		p.wrong("agents are of different versions", "wait for the rollout: kubectl rollout status ds -l app.kubernetes.io/name=berth-agent -A")
	}
	return nil
}

func (p *patient) policies(ctx context.Context) error {
	found, err := p.find(ctx, bindingKind)
	if err != nil {
		return p.unseen("ValidatingAdmissionPolicyBindings", err)
	}
	missing := false
	for name, open := range policies {
		if !slices.ContainsFunc(found, func(b unstructured.Unstructured) bool { return b.GetName() == name }) {
			missing = true
			p.wrong("the policy "+name+" is not bound, so "+open, "install Berth's chart again")
		}
	}
	if !missing {
		p.ok("%d admission policies", len(policies))
	}
	return nil
}

// space looks at the namespace: berths meet every Pod Security level, so what is left to be in the way is quota.
func (p *patient) space(ctx context.Context) error {
	namespace := &corev1.Namespace{}
	if err := p.api.Get(ctx, client.ObjectKey{Name: p.namespace}, namespace); apierrors.IsNotFound(err) {
		p.wrong("namespace "+p.namespace+" is missing", "create it, or name another by -n")
		return nil
	} else if err = p.unseen("the namespace "+p.namespace, err); err != nil {
		return err
	}
	level := namespace.Labels["pod-security.kubernetes.io/enforce"]
	if level == "" {
		level = "of the cluster's default"
	}
	p.ok("namespace %s, Pod Security %s: guests' pods meet restricted", p.namespace, level)
	quotas := &corev1.ResourceQuotaList{}
	if err := p.api.List(ctx, quotas, client.InNamespace(p.namespace)); err != nil {
		return p.unseen("ResourceQuotas", err)
	}
	for _, q := range quotas.Items {
		full := false
		for name, hard := range q.Status.Hard {
			if used := q.Status.Used[name]; used.Cmp(hard) >= 0 {
				full = true
				p.wrong(fmt.Sprintf("quota %s: %s of %s %s are used", q.Name, used.String(), hard.String(), name), "no guest more starts here before it is raised, or something else goes")
			}
		}
		if !full {
			p.ok("quota %s has room", q.Name)
		}
	}
	return nil
}

// guests looks for those that wait for somebody.
func (p *patient) guests(ctx context.Context) error {
	list, err := p.list(ctx, false, "")
	if err != nil {
		if explained(err) != err {
			return nil // said above
		}
		return p.unseen("VirtualMachines", err)
	}
	waiting := 0
	for i := range list.Items {
		vm := &list.Items[i]
		for _, kind := range []string{v1alpha1.ConditionScheduled, v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning} {
			c := meta.FindStatusCondition(vm.Status.Conditions, kind)
			if c != nil && c.Status != metav1.ConditionTrue && v1alpha1.Reason(c.Reason).IsWarning() && vm.Status.Ended == nil {
				waiting++
				p.wrong(fmt.Sprintf("%s/%s: %s", resourceName, vm.Name, c.Reason), "kubectl vm why "+vm.Name)
				break
			}
		}
	}
	if waiting == 0 {
		p.ok("%d VirtualMachines in %s, none in need of anybody", len(list.Items), p.namespace)
	}
	return nil
}
