package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/kubectl/pkg/cmd/events"
	"k8s.io/kubectl/pkg/cmd/logs"
	"k8s.io/kubectl/pkg/cmd/portforward"
	"k8s.io/kubectl/pkg/cmd/wait"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// borrowed makes a command of kubectl's ours: its flags and what it does stay, its arguments are turned from those of a
// VirtualMachine into its own.
func (s *session) borrowed(cmd *cobra.Command, use, short, example string, most int, turn func(cmd *cobra.Command, args []string) ([]string, error)) *cobra.Command {
	run := cmd.Run
	cmd.Use, cmd.Short, cmd.Long, cmd.Example = use, short, short+".", example
	cmd.ValidArgsFunction = s.complete(most)
	cmd.Run = nil
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		turned, err := turn(cmd, args)
		if err != nil {
			return err
		}
		run(cmd, turned)
		return nil
	}
	return cmd
}

// podOfFirst puts a pod's name in place of a VirtualMachine's in the first argument.
func (s *session) podOfFirst(cmd *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	_, pod, err := s.berth(cmd.Context(), args[0])
	if err != nil {
		return nil, err
	}
	return append([]string{"pod/" + pod.Name}, args[1:]...), nil
}

func (s *session) logs() *cobra.Command {
	return s.borrowed(logs.NewCmdLogs(s.factory, s.IOStreams), "logs NAME [-f] [-p]", "Show what the guest's console has printed",
		"  kubectl vm logs -f web\n  kubectl vm logs --previous web", 1, s.podOfFirst)
}

func (s *session) portForward() *cobra.Command {
	return s.borrowed(portforward.NewCmdPortForward(s.factory, s.IOStreams), "port-forward NAME [LOCAL_PORT:]REMOTE_PORT…",
		"Forward ports of this machine to the guest", "  kubectl vm port-forward web 8080:80", 1, s.podOfFirst)
}

func (s *session) wait() *cobra.Command {
	cmd := s.borrowed(wait.NewCmdWait(s.factory, s.IOStreams), "wait NAME… [--for condition=Ready|delete|jsonpath=…] [--timeout DURATION]",
		"Wait for a condition of VirtualMachines, by default Ready", "  kubectl vm wait web\n  kubectl vm wait --for=jsonpath='{.status.phase}'=Succeeded job", 0,
		func(cmd *cobra.Command, args []string) ([]string, error) {
			if !cmd.Flags().Changed("for") {
				if err := cmd.Flags().Set("for", "condition="+v1alpha1.ConditionReady); err != nil {
					return nil, err
				}
			}
			forgiving := strings.Contains(strings.ToLower(cmd.Flags().Lookup("for").Value.String()), "delete") || strings.Contains(strings.ToLower(cmd.Flags().Lookup("for").Value.String()), "create")
			var turned []string
			for _, name := range args {
				vm, err := s.vm(cmd.Context(), name)
				switch {
				case err == nil:
					name = vm.Name
				case !forgiving:
					return nil, err
				}
				_, bare, isTyped := strings.Cut(name, "/")
				if !isTyped {
					bare = name
				}
				turned = append(turned, resourceName+"/"+bare)
			}
			return turned, nil
		})
	return cmd
}

func (s *session) events() *cobra.Command {
	return s.borrowed(events.NewCmdEvents(s.factory, s.IOStreams), "events [NAME] [--watch] [--types Warning]", "List the Events of a VirtualMachine, or of the namespace",
		"  kubectl vm events web --watch", 1,
		func(cmd *cobra.Command, args []string) ([]string, error) {
			if len(args) > 1 {
				return nil, fmt.Errorf("events takes one name, not %d", len(args))
			}
			if len(args) == 0 {
				return nil, nil
			}
			vm, err := s.vm(cmd.Context(), args[0])
			if err != nil {
				return nil, err
			}
			return nil, cmd.Flags().Set("for", resourceName+"/"+vm.Name)
		})
}
