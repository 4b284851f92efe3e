package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/kubectl/pkg/cmd/events"
	"k8s.io/kubectl/pkg/cmd/logs"
	"k8s.io/kubectl/pkg/cmd/portforward"
	"k8s.io/kubectl/pkg/cmd/wait"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// borrowed makes a command of kubectl's ours: its flags and what it does stay, its arguments are turned from those of a
// VirtualMachine into its own.
func (s *session) borrowed(cmd *cobra.Command, use, short string, names int, turn func(ctx context.Context, args []string) ([]string, error)) *cobra.Command {
	run := cmd.Run
	ours := s.verb(use, short, nil, names, func(ctx context.Context, args []string) error {
		turned, err := turn(ctx, args)
		if err != nil {
			return err
		}
		signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // are kubectl's own now
		run(cmd, turned)
		return nil
	})
	cmd.Use, cmd.Short, cmd.Long, cmd.Example, cmd.Run, cmd.RunE, cmd.ValidArgsFunction = use, short, short+".", "", nil, ours.RunE, ours.ValidArgsFunction
	return cmd
}

// podOfFirst puts a pod's name in place of a VirtualMachine's in the first argument.
func (s *session) podOfFirst(ctx context.Context, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	_, pod, err := s.berth(ctx, args[0])
	if err != nil {
		return nil, err
	}
	return append([]string{"pod/" + pod.Name}, args[1:]...), nil
}

func (s *session) logs() *cobra.Command {
	return s.borrowed(logs.NewCmdLogs(s.factory, s.IOStreams), "logs NAME [-f] [-p]", "Show what the guest's console has printed", 1, s.podOfFirst)
}

func (s *session) portForward() *cobra.Command {
	return s.borrowed(portforward.NewCmdPortForward(s.factory, s.IOStreams), "port-forward NAME [LOCAL_PORT:]REMOTE_PORT…", "Forward ports of this machine to the guest", 1, s.podOfFirst)
}

// mayBeAbsent finds what wait can wait for of an object that is not there.
var mayBeAbsent = regexp.MustCompile(`(?i)\b(delete|create)\b`)

func (s *session) wait() *cobra.Command {
	cmd := wait.NewCmdWait(s.factory, s.IOStreams)
	return s.borrowed(cmd, "wait NAME… [--for condition=Ready|delete|jsonpath=…] [--timeout DURATION]", "Wait for a condition of VirtualMachines, by default Ready", 0, func(ctx context.Context, args []string) (turned []string, err error) {
		if !cmd.Flags().Changed("for") {
			err = cmd.Flags().Set("for", "condition="+v1alpha1.ConditionReady)
		}
		for _, name := range args {
			vm, failure := s.vm(ctx, name)
			if failure == nil {
				name = vm.Name
			} else if !mayBeAbsent.MatchString(cmd.Flags().Lookup("for").Value.String()) {
				return nil, failure
			}
			turned = append(turned, resourceName+"/"+name[strings.Index(name, "/")+1:])
		}
		return turned, err
	})
}

func (s *session) events() *cobra.Command {
	cmd := events.NewCmdEvents(s.factory, s.IOStreams)
	return s.borrowed(cmd, "events [NAME] [--watch] [--types Warning]", "List the Events of a VirtualMachine, or of the namespace", 1, func(ctx context.Context, args []string) ([]string, error) {
		if len(args) == 0 {
			return nil, nil
		} else if len(args) > 1 {
			return nil, fmt.Errorf("events takes one name, not %d", len(args))
		}
		vm, err := s.vm(ctx, args[0])
		if err != nil {
			return nil, err
		}
		return nil, cmd.Flags().Set("for", resourceName+"/"+vm.Name)
	})
}
