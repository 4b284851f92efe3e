package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/internal/berth"
)

// podMetrics is what the metrics API says of a pod.
type podMetrics struct {
	metav1.ObjectMeta `json:"metadata"`
	Containers        []struct {
		Name  string              `json:"name"`
		Usage corev1.ResourceList `json:"usage"`
	} `json:"containers"`
}

func (s *session) stats() *cobra.Command {
	var allNamespaces bool
	cmd := &cobra.Command{
		Use:               "stats [NAME…] [-A]",
		Short:             "Show what guests use of processors and memory, beside what their pods request",
		ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := s.vms(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := s.connect(); err != nil {
				return err
			}
			wanted := map[string]bool{}
			for _, vm := range vms {
				wanted[vm.Name] = true
			}
			in := client.InNamespace(s.namespace)
			if allNamespaces {
				in = ""
			}
			pods := &corev1.PodList{}
			if err := s.api.List(cmd.Context(), pods, in, client.HasLabels{berth.LabelVM}); err != nil {
				return err
			}
			used, err := s.usage(cmd, in)
			if err != nil {
				return err
			}
			t := newTable(s.Out, "NAMESPACE", "NAME", "CPU", "REQUESTED", "MEMORY", "REQUESTED", "%")
			for _, pod := range pods.Items {
				name := pod.Labels[berth.LabelVM]
				if len(wanted) > 0 && !wanted[name] || len(pod.Spec.Containers) == 0 || pod.Status.Phase != corev1.PodRunning {
					continue
				}
				requests := pod.Spec.Containers[0].Resources.Requests
				row := []string{pod.Namespace, name, "", requests.Cpu().String(), "", requests.Memory().String(), ""}
				if u, isKnown := used[client.ObjectKeyFromObject(&pod)]; isKnown {
					row[2], row[4] = fmt.Sprintf("%dm", u.Cpu().MilliValue()), bytesOf(u.Memory().Value())
					row[6] = percent(u.Memory(), requests.Memory())
				}
				t.row(row...)
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVarP(&allNamespaces, "all-namespaces", "A", false, "Show those of all namespaces")
	return cmd
}

func percent(part, whole *resource.Quantity) string {
	if whole.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d%%", part.Value()*100/whole.Value())
}

// usage is what the guests' containers use, as far as the cluster measures it; it says so if it does not.
func (s *session) usage(cmd *cobra.Command, in client.InNamespace) (map[client.ObjectKey]corev1.ResourceList, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: "metrics.k8s.io", Version: "v1beta1", Kind: "PodMetricsList"})
	err := s.api.List(cmd.Context(), list, in, client.HasLabels{berth.LabelVM})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsServiceUnavailable(err):
		fmt.Fprintln(s.ErrOut, "This cluster has no metrics API, so usage is not known: install metrics-server.")
		return nil, nil
	case apierrors.IsForbidden(err):
		fmt.Fprintln(s.ErrOut, "Usage is not known: you may not list pods of metrics.k8s.io here.")
		return nil, nil
	case err != nil:
		return nil, err
	}
	used := map[client.ObjectKey]corev1.ResourceList{}
	for _, item := range list.Items {
		m := podMetrics{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &m); err != nil {
			return nil, fmt.Errorf("reading the metrics of %s: %w", item.GetName(), err)
		}
		for _, c := range m.Containers {
			if c.Name == berth.Container {
				used[client.ObjectKey{Namespace: item.GetNamespace(), Name: item.GetName()}] = c.Usage
			}
		}
	}
	return used, nil
}
