package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-dev/berth/test/docs"
)

// shows is what those of the README's commands show that end only when their reader ends them.
var shows = map[string]string{
	"kubectl get vm -w":                  "Running",
	"kubectl logs -f first":              "login:",
	"kubectl attach -it first":           "login:",
	"kubectl port-forward first 2222:22": "Forwarding from 127.0.0.1:2222",
}

// TestREADME does what the README has its reader do first: it applies the manifest, with the lab's image in the place of
// the public one, and then enters each command as it stands there, in a namespace that the kubeconfig names.
func TestREADME(t *testing.T) {
	l := start(t)
	manifest, commands := docs.FirstVM(t)
	for _, o := range decodeExample(t, "README.md", manifest) {
		o.SetNamespace(l.ns)
		if err := l.Create(t.Context(), o); err != nil {
			t.Fatalf("creating %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	shell, followed := shell{l, l.kubeconfig()}, 0
	for _, line := range commands {
		t.Log(line)
		if shell.do(line) {
			followed++
		}
	}
	if followed != len(shows) {
		t.Errorf("%d of the README's commands were followed, want %d: have the map name them as they stand there", followed, len(shows))
	}
	l.vm("first", "to be gone", isGone)
}

// kubeconfig is the lab's with the test's namespace.
func (l *lab) kubeconfig() string {
	l.Helper()
	config, err := clientcmd.LoadFromFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		l.Fatal(err)
	}
	config.Contexts[config.CurrentContext].Namespace = l.ns
	path := filepath.Join(l.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		l.Fatal(err)
	}
	return path
}

// shell is where a user enters commands.
type shell struct {
	*lab
	kubeconfig string
}

func (s shell) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+line)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
	return cmd
}

// do does with a line what a user does, and tells whether it is one of shows.
func (s shell) do(line string) bool {
	s.Helper()
	command, _, _ := strings.Cut(line, "  ") // a comment follows
	text, follows := shows[command]
	switch {
	case !follows:
		s.enter(line)
	case strings.Contains(command, " port-forward "):
		s.greetThrough(line, text)
	default:
		s.open(line, text)()
	}
	return follows
}

// enter runs a line to its end.
func (s shell) enter(line string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), waitTimeout)
	defer cancel()
	if out, err := s.command(ctx, line).CombinedOutput(); err != nil {
		s.Fatalf("%s: %v: %s", line, err, out)
	}
}

// open runs a line on a terminal of its own, on which Enter is pressed once, and waits until it shows a text. To leave is
// to close that terminal.
func (s shell) open(line, text string) (leave func()) {
	s.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		s.Fatalf("opening a terminal: %v", err)
	}
	terminal := os.NewFile(uintptr(fd), "terminal")
	s.Cleanup(func() { _ = terminal.Close() })
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		s.Fatalf("opening a terminal: %v", err)
	}
	screen, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		s.Fatalf("opening a terminal: %v", err)
	}
	cmd := s.command(s.Context(), line)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = screen, screen, screen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	// Under nohup SIGHUP is ignored, which programs inherit. A signal that is caught has its default effect in them.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		s.Fatalf("%s: %v", line, err)
	}
	_ = screen.Close()
	shown := s.newConsole()
	go func() { _, _ = io.Copy(shown, terminal) }() // until it is closed
	if _, err := terminal.WriteString("\r"); err != nil {
		s.Fatalf("%s: pressing Enter: %v", line, err)
	}
	shown.await(text)
	return func() {
		_ = terminal.Close()
		_ = cmd.Wait() // it was hung up on
	}
}

// greetThrough reaches the guest's sshd through kubectl port-forward, which ends if sshd has not started yet.
func (s shell) greetThrough(line, text string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), waitTimeout)
	defer cancel()
	greeting := ""
	for ctx.Err() == nil {
		leave := s.open(line, text)
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "localhost:2222")
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			greeting, _ = bufio.NewReader(conn).ReadString('\n') // whom nobody answers hears an end
			stop()
			_ = conn.Close()
		}
		leave()
		if strings.HasPrefix(greeting, "SSH-2.0-") {
			return
		}
	}
	s.Fatalf("%s: nobody answers as sshd does, the last word is %q", line, greeting)
}
