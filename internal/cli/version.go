package cli

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) version() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:               "version [--client]",
		Short:             "Print the versions of this program, and of Berth and Kubernetes in the cluster",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(s.Out, "kubectl-vm   %s, API %s\n", ownVersion(), v1alpha1.GroupVersion)
			if clientOnly {
				return nil
			}
			if err := s.connect(); err != nil {
				return err
			}
			discovery, err := s.factory.ToDiscoveryClient()
			if err != nil {
				return err
			}
			server, err := discovery.ServerVersion()
			if err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "Kubernetes   %s\n", clean(server.GitVersion))
			p := &patient{session: s}
			found, err := p.find(cmd.Context(), deploymentKind, client.MatchingLabels{"app.kubernetes.io/name": "berth-operator"})
			if err != nil && !apierrors.IsForbidden(err) {
				return err
			}
			for i := range found {
				fmt.Fprintf(s.Out, "operator     %s\n", clean(versionOf(&found[i])))
			}
			hosts := &v1alpha1.VirtualMachineHostList{}
			if err := s.api.List(cmd.Context(), hosts); apierrors.IsForbidden(err) {
				return nil
			} else if err != nil {
				return err
			}
			t := newTable(s.Out, "NODE", "AGENT", "LIBVIRT", "QEMU", "KERNEL", "ACCELERATION")
			for _, h := range hosts.Items {
				t.row(h.Name, h.Status.AgentVersion, h.Status.LibvirtVersion, h.Status.QEMUVersion, h.Status.KernelVersion, string(h.Status.Acceleration))
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "Print this program's alone")
	return cmd
}

// ownVersion is what the build says: the module's version, or the commit.
func ownVersion() string {
	info, isKnown := debug.ReadBuildInfo()
	if !isKnown {
		return "unknown"
	}
	version := info.Main.Version
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			return setting.Value
		}
	}
	if version == "" {
		return "(devel)"
	}
	return version
}
