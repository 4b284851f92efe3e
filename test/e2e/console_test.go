package e2e

import (
	"bufio"
	"context"
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
)

// console follows what a command shows, mostly kubectl logs -f of a guest.
type console struct {
	l    *lab
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

// logs follows the console of the guest's present container.
func (l *lab) logs(vm string) *console {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	l.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "kubectl", "-n", l.ns, "logs", "-f", vm)
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatalf("kubectl logs: %v", err)
	}
	return l.follow(out, func() { _ = cmd.Wait() })
}

// follow reads what a command shows, and calls ended at its end.
func (l *lab) follow(out io.Reader, ended func()) *console {
	c := &console{l: l, more: make(chan struct{}, 1)}
	go func() {
		r := bufio.NewReader(out)
		buffer := make([]byte, 4096)
		for {
			n, err := r.Read(buffer)
			c.mu.Lock()
			c.text.Write(buffer[:n])
			c.mu.Unlock()
			select {
			case c.more <- struct{}{}:
			default:
			}
			if err != nil {
				ended()
				return
			}
		}
	}()
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
	deadline := time.NewTimer(patience)
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

// say types a line into a tiny guest's console, as in kubectl attach -it.
func (l *lab) say(vm, line string) {
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
	done := make(chan error, 1)
	go func() {
		done <- attach.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard, Tty: true})
	}()
	if _, err := io.WriteString(typed, line+"\n"); err != nil {
		l.Fatalf("typing %q: %v", line, err)
	}
	l.Cleanup(func() { // an end of input would close the console for who comes next
		cancel()
		<-done
	})
}
