package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (s *session) system() *cobra.Command {
	cmd := &cobra.Command{Use: "system", Short: "Look after the nodes' storage", Args: cobra.NoArgs}
	cmd.AddCommand(&cobra.Command{
		Use:               "df",
		Short:             "Show what images and disks take on each node",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hosts, vms, err := s.hostsAndGuests(cmd.Context())
			if err != nil {
				return err
			}
			_, users := usedBy(vms)
			t := newTable(s.Out, "NODE", "TYPE", "COUNT", "IN USE", "SIZE", "NOTE")
			for _, h := range hosts.Items {
				var sum, idle int64
				used := 0
				for _, i := range h.Status.Images {
					size := int64(0)
					if i.Size != nil {
						size = i.Size.Value()
					}
					sum += size
					if len(users[i.Digest]) > 0 {
						used++
					} else {
						idle += size
					}
				}
				t.row(h.Name, "images", fmt.Sprint(len(h.Status.Images)), fmt.Sprint(used), bytesOf(sum), bytesOf(idle)+" of no VirtualMachine that you may see")
				var disks, running int
				var virtual int64
				for i := range vms.Items {
					vm := &vms.Items[i]
					if vm.Status.NodeName != h.Name {
						continue
					}
					for _, d := range vm.Status.Disks {
						disks++
						if present(vm) {
							running++
						}
						if d.Size != nil {
							virtual += d.Size.Value()
						}
					}
				}
				t.row(h.Name, "disks", fmt.Sprint(disks), fmt.Sprint(running), bytesOf(virtual), "as their guests see them; they take what was written")
				stray := int64(0)
				if h.Status.StrayDiskSize != nil {
					stray = h.Status.StrayDiskSize.Value()
				}
				t.row(h.Name, "stray disks", fmt.Sprint(len(h.Status.StrayDisks)), "0", bytesOf(stray), "of VirtualMachines that nobody knows")
			}
			return t.Flush()
		},
	})
	return cmd
}
