package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/homedir"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) ssh() *cobra.Command {
	var login string
	var port int
	cmd := s.verb("ssh [USER@]NAME [-l USER] [-p PORT] [-- SSH-OPTION… COMMAND…]", "Log into the guest by this machine's ssh, whatever network the guest is in", cobra.MinimumNArgs(1), 1, func(ctx context.Context, args []string) error {
		name := args[0]
		if user, rest, is := strings.Cut(name, "@"); is {
			login, name = user, rest
		}
		vm, pod, err := s.berth(ctx, name)
		if err != nil {
			return err
		}
		options, err := s.knownHosts(ctx, vm, pod)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		go func() {
			here, err := listener.Accept()
			_ = listener.Close() // it is for this ssh alone
			if err == nil {
				s.carry(here, pod, port)
			}
		}()
		options = append(options, "-o", "HostKeyAlias="+string(vm.UID), "-o", "CheckHostIP=no", "-p", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
		if login != "" {
			options = append(options, "-l", login)
		}
		ssh := exec.CommandContext(ctx, "ssh", append(append(options, "127.0.0.1"), args[1:]...)...) // ssh takes options after the host, too
		ssh.Stdin, ssh.Stdout, ssh.Stderr = s.In, s.Out, s.ErrOut
		err = ssh.Run()
		var exit *exec.ExitError
		switch {
		case errors.Is(err, exec.ErrNotFound):
			return fmt.Errorf("this machine has no ssh: install OpenSSH's client, or use kubectl vm exec -it %s -- sh", vm.Name)
		case errors.As(err, &exit) && exit.ExitCode() >= 0:
			return exitCode(exit.ExitCode())
		}
		return err
	})
	cmd.Flags().StringVarP(&login, "login", "l", "", "The guest's user; ssh's own default else")
	cmd.Flags().IntVarP(&port, "port", "p", 22, "The port of the guest's ssh server")
	return cmd
}

// knownHosts are options that have ssh know the guest by its own host keys, read through the guest program; where none
// answers, by the key that the same VirtualMachine had when ssh first saw it.
func (s *session) knownHosts(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod) ([]string, error) {
	dir := filepath.Join(homedir.HomeDir(), ".kube", "berth")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	said := &bytes.Buffer{}
	_ = s.ask(ctx, pod, nil, said, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub") // where it fails, there are no keys
	known := hostKeys(string(vm.UID), said.String())
	if known == "" {
		return []string{"-o", "StrictHostKeyChecking=accept-new", "-o", `UserKnownHostsFile="` + filepath.Join(dir, "known_hosts") + `"`}, nil
	}
	file := filepath.Join(dir, string(vm.UID))
	return []string{"-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", `UserKnownHostsFile="` + file + `"`}, os.WriteFile(file, []byte(known), 0o600)
}

var publicKey = regexp.MustCompile(`(?m)^((?:ssh|ecdsa)-[a-z0-9-]+) ([A-Za-z0-9+/]+=*)(?:\s|$)`)

// hostKeys are lines of known_hosts for an alias, of what a guest says are its public keys: of each line type and key alone.
func hostKeys(alias, text string) (known string) {
	for _, m := range publicKey.FindAllStringSubmatch(text[:min(len(text), 64<<10)], -1) {
		known += alias + " " + m[1] + " " + m[2] + "\n"
	}
	return known
}
