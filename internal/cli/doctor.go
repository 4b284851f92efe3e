package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// installed is what the chart makes.
var installed = map[metav1.TypeMeta][]string{
	{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}: {"virtualmachines.berth.dev", "virtualmachineimages.berth.dev", "virtualmachinehosts.berth.dev"},
	{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingAdmissionPolicyBinding"}: {
		"berth-agent-guests", "berth-agent-host", "berth-agent-events", "berth-berths", "berth-disks", "berth-disks-finalizer",
	},
}

// patient is what a doctor has found.
type patient struct {
	*session
	own      string // version of this program
	operator string // version of it, as far as it is known
	isIll    bool
}

func (s *session) doctor() *cobra.Command {
	return s.verb("doctor", "Check Berth in this cluster and namespace; the exit code is 1 if anything is wrong", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		p := &patient{session: s, own: ownVersion()}
		for _, check := range []func(context.Context) error{p.installed, p.workloads, p.nodes, p.quota, p.guests} {
			if err := check(ctx); apierrors.IsForbidden(err) {
				fmt.Fprintf(s.Out, "?      %s: an administrator can\n", clean(err.Error()))
			} else if err != nil {
				return err
			}
		}
		if p.isIll {
			return exitCode(1)
		}
		return nil
	})
}

func (p *patient) ok(format string, args ...any) {
	fmt.Fprintln(p.Out, "ok     "+clean(fmt.Sprintf(format, args...)))
}

func (p *patient) wrong(format string, args ...any) {
	p.isIll = true
	fmt.Fprintln(p.Out, "WRONG  "+clean(fmt.Sprintf(format, args...)))
}

// installed looks for what the chart makes.
func (p *patient) installed(ctx context.Context) error {
	for kind, names := range installed {
		for _, name := range names {
			err := p.api.Get(ctx, client.ObjectKey{Name: name}, &metav1.PartialObjectMetadata{TypeMeta: kind})
			switch {
			case apierrors.IsNotFound(err):
				p.wrong("%s %s is missing: install Berth's chart", kind.Kind, name)
			case err != nil:
				return err
			default:
				p.ok("%s %s", kind.Kind, name)
			}
		}
	}
	return nil
}

// partOfBerth are the chart's workloads: one Deployment, the operator's, and one DaemonSet, the agent's.
var partOfBerth = metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=berth"}

func (p *patient) workloads(ctx context.Context) error {
	operators, err := p.clients.AppsV1().Deployments("").List(ctx, partOfBerth)
	agents, failure := p.clients.AppsV1().DaemonSets("").List(ctx, partOfBerth)
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	for name, count := range map[string]int{"berth-operator": len(operators.Items), "berth-agent": len(agents.Items)} {
		if count == 0 {
			p.wrong("there is no %s: install Berth's chart", name)
		}
	}
	for _, o := range operators.Items {
		p.operator = versionOf(o.Spec.Template)
		p.pods("berth-operator", o.Namespace, p.operator, *o.Spec.Replicas, o.Status.ReadyReplicas)
	}
	for _, a := range agents.Items {
		if a.Status.DesiredNumberScheduled == 0 {
			p.wrong("no node is to have an agent: change agent.nodeSelector or agent.tolerations in the chart's values")
			continue
		}
		p.pods("berth-agent", a.Namespace, versionOf(a.Spec.Template), a.Status.DesiredNumberScheduled, a.Status.NumberReady)
	}
	if differ(p.own, p.operator, 2) {
		p.wrong("this kubectl-vm is of version %s, the operator of %s: install the kubectl-vm of that version", p.own, p.operator)
	}
	return nil
}

// release is a version of a release, with the parts 1, which is all of it, and 2, its first two numbers.
var release = regexp.MustCompile(`^v?((\d+\.\d+)\.\d+(?:-[a-z][a-z0-9.]*)?)$`)

// differ tells whether a part of two releases differs. A developer's build differs from none.
func differ(one, other string, part int) bool {
	a, b := release.FindStringSubmatch(one), release.FindStringSubmatch(other)
	return a != nil && b != nil && a[part] != b[part]
}

func (p *patient) pods(of, namespace, version string, wanted, ready int32) {
	if ready < wanted {
		p.wrong("%d of %d pods of %s are not ready: kubectl -n %s describe pods -l app.kubernetes.io/name=%[3]s", wanted-ready, wanted, of, namespace)
		return
	}
	p.ok("%s %s: %d", of, version, ready)
}

// versionOf is the tag of a workload's image.
func versionOf(template corev1.PodTemplateSpec) string {
	image, _, _ := strings.Cut(template.Spec.Containers[0].Image, "@")
	return image[strings.LastIndex(image, ":")+1:]
}

func (p *patient) nodes(ctx context.Context) error {
	hosts, err := p.hosts(ctx)
	if meta.IsNoMatchError(err) {
		return nil // guests says so
	} else if err != nil {
		return err
	}
	if len(hosts) == 0 {
		p.wrong("no node has reported as a KVM host: look at the agents' logs")
	}
	for _, h := range hosts {
		for _, problem := range h.Status.Problems {
			p.wrong("host %s: %s: %s", h.Name, problem.Name, problem.Message)
		}
		if differ(h.Status.AgentVersion, p.operator, 1) {
			p.wrong("host %s: its agent is of version %s, the operator of %s: wait for the rollout, or upgrade the chart", h.Name, h.Status.AgentVersion, p.operator)
		} else if first := hosts[0]; h.Status.AgentVersion != first.Status.AgentVersion {
			p.wrong("host %s: its agent is of version %s, that of %s %s: wait for the rollout", h.Name, h.Status.AgentVersion, first.Name, first.Status.AgentVersion)
		}
		if c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionHostReady); c == nil {
			p.wrong("host %s is not Ready: its agent has not reported", h.Name)
		} else if c.Status != metav1.ConditionTrue {
			p.wrong("host %s is not Ready: %s: %s %s", h.Name, c.Reason, c.Message, v1alpha1.Reason(c.Reason).Next())
		} else if len(h.Status.Problems) == 0 {
			p.ok("host %s: %s, libvirt %s, QEMU %s", h.Name, h.Status.Acceleration, h.Status.LibvirtVersion, h.Status.QEMUVersion)
		}
	}
	return nil
}

// quota looks at the namespace: guests' pods meet every level of Pod Security, so what is left to be in the way is quota.
func (p *patient) quota(ctx context.Context) error {
	namespace := &corev1.Namespace{}
	if err := p.api.Get(ctx, client.ObjectKey{Name: p.namespace}, namespace); apierrors.IsNotFound(err) {
		p.wrong("namespace %s is missing: create it, or name another by -n", p.namespace)
		return nil
	} else if err != nil {
		return err
	}
	p.ok("namespace %s: its Pod Security level (%s) lets guests' pods in", p.namespace, cmp.Or(namespace.Labels["pod-security.kubernetes.io/enforce"], "none"))
	quotas := &corev1.ResourceQuotaList{}
	err := p.api.List(ctx, quotas, client.InNamespace(p.namespace))
	for _, q := range quotas.Items {
		for name, hard := range q.Status.Hard {
			if used := q.Status.Used[name]; used.Cmp(hard) >= 0 {
				p.wrong("quota %s: %s of %s %s are used: no guest more starts here before it is raised, or something else goes", q.Name, used.String(), hard.String(), name)
			}
		}
	}
	return err
}

// guests looks for those that wait for somebody.
func (p *patient) guests(ctx context.Context) error {
	list, err := p.list(ctx, p.namespace, "")
	for _, vm := range list.Items {
		for _, c := range vm.Status.Conditions {
			if reason := v1alpha1.Reason(c.Reason); c.Status != metav1.ConditionTrue && reason.StandsIn(c.Type) && reason.IsWarning() && vm.Status.Ended == nil {
				p.wrong("%[1]s/%[2]s: %[3]s: kubectl vm why %[2]s", resourceName, vm.Name, c.Reason)
			}
		}
	}
	if explained(err) != err { //nolint:errorlint // whether it is another
		p.wrong("this cluster does not serve %s: install the chart of this kubectl-vm's version", v1alpha1.GroupVersion)
		return nil
	}
	return err
}
