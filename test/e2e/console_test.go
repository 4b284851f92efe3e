package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/berth-dev/berth/test/env"
)

// console is what a guest's serial console shows, and where one types into it.
type console struct {
	l    *lab
	in   io.Writer // of one that was attached to
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (l *lab) newConsole() *console { return &console{l: l, more: make(chan struct{}, 1)} }

// Write takes what the console shows.
func (c *console) Write(shown []byte) (int, error) {
	c.mu.Lock()
	c.text.Write(shown)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	return len(shown), nil
}

// logs follows the console of the guest's present container, as kubectl logs -f does.
func (l *lab) logs(vm string) *console {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	l.Cleanup(cancel)
	c := l.newConsole()
	cmd := exec.CommandContext(ctx, "kubectl", "-n", l.ns, "logs", "-f", vm)
	cmd.Stdout = c
	if err := cmd.Start(); err != nil {
		l.Fatalf("kubectl logs: %v", err)
	}
	go func() { _ = cmd.Wait() }()
	return c
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// await waits until the console has shown a text.
func (c *console) await(text string) {
	c.l.Helper()
	c.awaitTimes(text, 1)
}

// awaitTimes waits until the console has shown a text so many times.
func (c *console) awaitTimes(text string, times int) {
	c.l.Helper()
	defer env.Slow(c.l, time.Now(), fmt.Sprintf("a console to show %q", text))
	deadline := time.NewTimer(waitTimeout)
	defer deadline.Stop()
	for strings.Count(c.String(), text) < times {
		select {
		case <-c.more:
		case <-deadline.C:
			shown := c.String()
			c.l.Fatalf("the console does not show %q; its end is:\n%s", text, shown[max(0, len(shown)-2000):])
		}
	}
}

// say types a line into a tiny guest's console.
func (l *lab) say(vm, line string) {
	l.Helper()
	l.attach(vm).say(line)
}

func (c *console) say(line string) {
	c.l.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.l.Fatalf("typing %q: %v", line, err)
	}
}

// attach is at a guest's console from now on, as kubectl attach -it is.
func (l *lab) attach(vm string) *console {
	l.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		l.Fatal(err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		l.Fatal(err)
	}
	url := clients.CoreV1().RESTClient().Post().Namespace(l.ns).Resource("pods").Name(vm).SubResource("attach").
		VersionedParams(&corev1.PodAttachOptions{Stdin: true, Stdout: true, TTY: true}, scheme.ParameterCodec).URL()
	attach, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, url.String())
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.Context())
	in, typed := io.Pipe()
	c := l.newConsole()
	c.in = typed
	done := make(chan error, 1)
	go func() {
		done <- attach.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: c, Tty: true})
	}()
	l.Cleanup(func() { // an end of input would close the console for who comes next
		cancel()
		<-done
	})
	return c
}
