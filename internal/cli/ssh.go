package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/util/homedir"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const sshPort = 22

func (s *session) ssh() *cobra.Command {
	var login string
	var port int
	cmd := &cobra.Command{
		Use:               "ssh [USER@]NAME [-l USER] [-p PORT] [-- SSH-ARG…]",
		Short:             "Log into the guest by this machine's ssh, whatever network the guest is in",
		Example:           "  kubectl vm ssh debian@web\n  kubectl vm ssh web -l debian -- -L 8080:localhost:80 uptime",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if user, rest, is := strings.Cut(name, "@"); is {
				login, name = user, rest
			}
			vm, pod, err := s.berth(cmd.Context(), name)
			if err != nil {
				return err
			}
			return s.sshTo(cmd.Context(), vm, pod, login, port, args[1:])
		},
	}
	cmd.Flags().StringVarP(&login, "login", "l", "", "The guest's user; ssh's own default else")
	cmd.Flags().IntVarP(&port, "port", "p", sshPort, "The port of the guest's ssh server")
	return cmd
}

// sshTo runs ssh through a listener that takes its one connection and no other.
func (s *session) sshTo(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, login string, port int, more []string) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("this machine has no ssh: install OpenSSH's client, or use kubectl vm exec -it " + vm.Name + " -- sh")
	}
	known, remove, err := s.knownHosts(ctx, vm, pod)
	if err != nil {
		return err
	}
	defer remove()
	t, err := s.tunnel(pod)
	if err != nil {
		return err
	}
	defer t.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go s.carry(listener, t, port)
	args := append(known, "-o", "HostKeyAlias="+string(vm.UID), "-o", "CheckHostIP=no", "-p", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
	if login != "" {
		args = append(args, "-l", login)
	}
	options, words := sshArgs(more)
	args = append(append(append(args, options...), "127.0.0.1"), words...)
	ssh := exec.CommandContext(ctx, program, args...)
	ssh.Stdin, ssh.Stdout, ssh.Stderr = s.In, s.Out, s.ErrOut
	var exit *exec.ExitError
	if err := ssh.Run(); errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exitCode(exit.ExitCode())
	} else {
		return err
	}
}

// carry takes one connection and carries it to a port of the guest.
func (s *session) carry(listener net.Listener, t *tunnel, port int) {
	here, err := listener.Accept()
	_ = listener.Close()
	if err != nil {
		return // ssh went before it came
	}
	defer here.Close()
	there, err := t.dial(port)
	if err != nil {
		fmt.Fprintf(s.ErrOut, "reaching port %d of the guest: %v\n", port, err)
		return
	}
	join(here, there, func(err error) { fmt.Fprintf(s.ErrOut, "reaching port %d of the guest: %v\n", port, err) })
}

// join copies both ways until either end has ended; failed takes what the far end says of a failure.
func join(here, there io.ReadWriteCloser, failed func(error)) {
	go func() {
		_, _ = io.Copy(there, here)
		_ = there.Close()
	}()
	if n, err := io.Copy(here, there); err != nil && n == 0 {
		failed(err)
	}
	_ = here.Close()
}

// sshArgs parts what follows -- into options of ssh, up to the first word that is none and is no option's value, and the
// command.
func sshArgs(args []string) (options, words []string) {
	const valued = "BbcDEeFIiJLlmOopQRSWw" // ssh(1)
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return args[:i], args[i+1:]
		}
		if !strings.HasPrefix(args[i], "-") || args[i] == "-" {
			return args[:i], args[i:]
		}
		if at := strings.IndexAny(args[i][1:], valued); at >= 0 && at == len(args[i])-2 {
			i++ // its value is the next word
		}
	}
	return args, nil
}

// knownHosts are options that have ssh know the guest by its own host keys, read through the guest program; where none
// answers, by the key that the same VirtualMachine had when ssh first saw it.
func (s *session) knownHosts(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod) (options []string, remove func(), err error) {
	keys := &bytes.Buffer{}
	line := (&command{argv: []string{"sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"}}).line()
	if s.runIn(ctx, pod, line, false, false, genericiooptions.IOStreams{Out: keys, ErrOut: io.Discard}) != nil || keys.Len() > 64<<10 {
		keys.Reset() // no guest program, or another server than OpenSSH's
	}
	known := hostKeys(string(vm.UID), keys.String())
	if known == "" {
		dir := filepath.Join(homedir.HomeDir(), ".kube", "berth")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, err
		}
		return []string{"-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + quoted(filepath.Join(dir, "known_hosts"))}, func() {}, nil
	}
	file, err := os.CreateTemp("", "kubectl-vm-known-hosts-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { _ = os.Remove(file.Name()) }
	if _, err = file.WriteString(known); err == nil {
		err = file.Close()
	}
	if err != nil {
		remove()
		return nil, nil, err
	}
	return []string{"-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", "UserKnownHostsFile=" + quoted(file.Name())}, remove, nil
}

func quoted(path string) string { return `"` + path + `"` }

// hostKeys are lines of known_hosts for an alias, of what a guest says are its public keys: of each line type and key alone.
func hostKeys(alias, text string) string {
	var known strings.Builder
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "ssh-") && !strings.HasPrefix(fields[0], "ecdsa-") || strings.Trim(fields[1], base64Letters) != "" {
			continue
		}
		fmt.Fprintf(&known, "%s %s %s\n", alias, fields[0], fields[1])
	}
	return known.String()
}

const base64Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
