package cli

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) images() *cobra.Command {
	return &cobra.Command{
		Use:               "images",
		Short:             "List the images that nodes keep, and the VirtualMachines made from them",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hosts, vms, err := s.hostsAndGuests(cmd.Context())
			if err != nil {
				return err
			}
			type image struct {
				size  int64
				nodes []string
			}
			images := map[string]*image{}
			for _, h := range hosts.Items {
				for _, i := range h.Status.Images {
					if images[i.Digest] == nil {
						images[i.Digest] = &image{}
					}
					images[i.Digest].nodes = append(images[i.Digest].nodes, h.Name)
					if i.Size != nil {
						images[i.Digest].size = max(images[i.Digest].size, i.Size.Value())
					}
				}
			}
			names, users := usedBy(vms)
			t := newTable(s.Out, "IMAGE", "DIGEST", "SIZE", "NODES", "USED BY")
			for _, digest := range slices.Sorted(maps.Keys(images)) {
				i := images[digest]
				t.row(names[digest], digest, bytesOf(i.size), listed(i.nodes), listed(users[digest]))
			}
			return t.Flush()
		},
	}
}

// hostsAndGuests are all that the user may see.
func (s *session) hostsAndGuests(ctx context.Context) (*v1alpha1.VirtualMachineHostList, *v1alpha1.VirtualMachineList, error) {
	if err := s.connect(); err != nil {
		return nil, nil, err
	}
	hosts := &v1alpha1.VirtualMachineHostList{}
	if err := s.api.List(ctx, hosts); err != nil {
		return nil, nil, err
	}
	vms, err := s.list(ctx, true, "")
	if err != nil { // those of one namespace are better than none
		vms, err = s.list(ctx, false, "")
	}
	return hosts, vms, err
}

// usedBy tells by an image's digest how VirtualMachines name it, and which.
func usedBy(vms *v1alpha1.VirtualMachineList) (names map[string]string, users map[string][]string) {
	names, users = map[string]string{}, map[string][]string{}
	add := func(vm *v1alpha1.VirtualMachine, image, digest string) {
		if user := vm.Namespace + "/" + vm.Name; digest != "" && !slices.Contains(users[digest], user) {
			names[digest], users[digest] = image, append(users[digest], user)
		}
	}
	for i := range vms.Items {
		vm := &vms.Items[i]
		for _, d := range vm.Status.Disks {
			add(vm, d.Image, d.ImageDigest)
		}
		if k := vm.Status.Kernel; k != nil {
			add(vm, k.Image, k.ImageDigest)
		}
	}
	return names, users
}

// listed is a list as a table's cell has room for.
func listed(names []string) string {
	const most = 3
	slices.Sort(names)
	if len(names) > most {
		return strings.Join(names[:most], ",") + ",…"
	}
	return strings.Join(names, ",")
}
