package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// cloud is a Debian that nobody prepared, and of which nothing is asked but what any VM can.
const cloud = `
apiVersion: v1
kind: Service
metadata: {name: tiny}
spec: {selector: {app: cloud}, ports: [{port: 80}]}
---
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: cloud}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 60
  memory: {size: 512Mi}
  disks: [{name: root, image: $CLOUD}]
  berth: {labels: {app: cloud}}
  readinessProbe: {exec: {command: [test, -e, /run/ready]}, periodSeconds: 2, timeoutSeconds: 30, failureThreshold: 1}
`

// TestExec reaches into a guest by plain kubectl, in a namespace that enforces restricted pods.
func TestExec(t *testing.T) {
	l := start(t)
	l.apply(cloud)
	vm := l.vm("cloud", "to have its guest program answer", hasTools)
	t.Logf("the guest program is %s", vm.Status.Guest.Tools)

	t.Log("codes, streams and users")
	for _, tt := range []struct {
		command []string
		want    ran
	}{
		{[]string{"sh", "-c", "echo out; echo err >&2"}, ran{"out\n", "err\n", 0}},
		{[]string{"sh", "-c", "echo out; exit 3"}, ran{"out\n", "", 3}},
		{[]string{"guest", "no-such-command"}, ran{code: 127}},
		{[]string{"sh", "-c", "kill -9 $$"}, ran{code: 137}},
		{[]string{"cat", "/proc/1/comm"}, ran{"systemd\n", "", 0}},
		{[]string{"sh", "-c", "echo $PATH $HOME $(umask) $(id -u)"}, ran{"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root 0022 0\n", "", 0}},
		{[]string{"/berth-shim", "exec", "-u", "nobody", "-w", "/tmp", "-e", "A=b c", "--", "sh", "-c", "echo $(id -un) $PWD $A"}, ran{"nobody /tmp b c\n", "", 0}},
		{[]string{"/berth-shim", "exec", "-u", "nosuchuser", "--", "true"}, ran{code: 126}},
		{[]string{"/berth-shim", "exec", "-w", "/no/such", "--", "true"}, ran{code: 126}},
	} {
		got := l.exec("cloud", nil, tt.command...)
		if got.out != tt.want.out || got.code != tt.want.code || tt.want.err != "" && !strings.Contains(got.err, strings.TrimSpace(tt.want.err)) {
			t.Errorf("%q: %+v, want %+v", tt.command, got, tt.want)
		}
	}
	big := make([]byte, 1<<20)
	_, _ = rand.Read(big)
	if got := l.exec("cloud", bytes.NewReader(big), "cat"); got.out != string(big) || got.code != 0 {
		t.Errorf("cat of 1 MiB gave %d bytes, code %d, %s", len(got.out), got.code, got.err)
	}

	t.Log("a terminal, with another size and an interrupt")
	tty := l.terminal("cloud", "bash", "--norc")
	tty.say("stty size")
	tty.await("41 132")
	tty.sizes <- remotecommand.TerminalSize{Width: 100, Height: 50}
	tty.say(`until [ "$(stty size)" = "50 100" ]; do :; done; echo re''sized`)
	tty.await("resized")
	tty.say(`sh -c "echo be''gun; exec sleep 100000"`) // which has the terminal by the time that it says so
	tty.await("begun")
	if _, err := io.WriteString(tty.in, "\x03"); err != nil {
		t.Fatal(err)
	}
	tty.say("echo co''de $?")
	tty.await("code 130")
	tty.say("exit 7")
	if code := codeOf(t, <-tty.done); code != 7 {
		t.Errorf("the shell ended with %d", code)
	}

	t.Log("copies, of a file and of a tree, there and back")
	copies(l)

	t.Log("a readiness probe moves a Service")
	l.endpoint("false")
	l.exec("cloud", nil, "touch", "/run/ready")
	l.vm("cloud", "to be Ready", isReady)
	l.endpoint("true")
	l.exec("cloud", nil, "rm", "/run/ready")
	l.vm("cloud", "not to be Ready", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonProbesFailing)
	})
	l.endpoint("false")

	t.Log("a pause, and a reboot")
	l.patch("cloud", `{"state":"Paused"}`)
	l.vm("cloud", "to be Paused", phase(v1alpha1.PhasePaused))
	if got := l.exec("cloud", nil, "true"); got.code != 126 || !strings.Contains(got.err, "paused") {
		t.Errorf("in a paused guest: %+v", got)
	}
	l.patch("cloud", `{"state":"Running"}`)
	l.vm("cloud", "to run", runs)
	session := l.session("cloud", "sh", "-c", "echo begun; sleep 100000")
	session.await("begun")
	l.exec("cloud", nil, "systemctl", "reboot")
	if code := codeOf(t, <-session.done); code != 255 || !strings.Contains(session.String(), "rebooted") {
		t.Errorf("the session ended with %d: %s", code, session)
	}
	l.vm("cloud", "to have been reset", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.Resets > 0 })
	env.Within(t, waitTimeout, "the guest program to answer after the reboot", func() bool { return l.exec("cloud", nil, "true").code == 0 })

	t.Log("its exit code")
	l.exec("cloud", nil, "sh", "-c", "echo 3 >/dev/virtio-ports/dev.berth.exit.0")
	l.exec("cloud", nil, "systemctl", "poweroff")
	l.vm("cloud", "to have failed with its code", func(vm *v1alpha1.VirtualMachine) bool {
		return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, v1alpha1.ReasonPoweredOff, 3)
	})
	onlyUsersWroteSpec(l, "cloud")
}

// reached is the tiny guest with the guest program in its initrd.
var reached = strings.NewReplacer("$KERNEL", "$HOSTILE", "no_timer_check", "no_timer_check tools").Replace(tiny)

// TestExecOutlivesBerth kills agent and operator under a session, a copy and two viewers of the screen, which go on.
func TestExecOutlivesBerth(t *testing.T) {
	l := startAlone(t)
	l.apply(reached + withScreen)
	l.vm("tiny", "to have its guest program answer", hasTools)
	session := l.session("tiny", "sh", "-c", "echo begun; read line; echo $line")
	session.await("begun")
	address, _ := l.portForward("tiny", "5900")
	viewers := []*viewer{l.viewer(address), l.viewer(address)}
	for _, v := range viewers {
		v.picture()
	}
	in, copied := &source{sum: sha256.New(), end: make(chan struct{})}, make(chan ran, 1)
	go func() { copied <- l.exec("tiny", in, "sha256sum") }()
	env.Eventually(t, "the copy to arrive", func() bool { return l.exec("tiny", nil, "guest", "pidof", "sha256sum").code == 0 })
	in.goesOn(t)
	for _, name := range []string{"berth-agent", "berth-operator"} {
		for _, pod := range (victim{l, name, ""}).pods() {
			processes("/"+name, func(pid string, _ []byte) {
				if group, _ := os.ReadFile("/proc/" + pid + "/cgroup"); strings.Contains(string(group), string(pod.UID)) {
					_ = exec.CommandContext(t.Context(), "kill", "-9", pid).Run()
				}
			})
		}
		in.goesOn(t)
		victim{l, name, ""}.revive()
	}
	l.system("rollout", "status", "daemonset/berth-agent", "--timeout=2m")
	l.system("rollout", "status", "deployment/berth-operator", "--timeout=2m")
	session.say("still here")
	session.await("still here")
	if code := codeOf(t, <-session.done); code != 0 {
		t.Errorf("the session ended with %d: %s", code, session)
	}
	for _, v := range viewers {
		v.answered()
	}
	in.goesOn(t)
	close(in.end)
	if got := <-copied; got.code != 0 || !strings.HasPrefix(got.out, fmt.Sprintf("%x", in.sum.Sum(nil))) {
		t.Errorf("of %d bytes came others: %+v", in.sent.Load(), got)
	}
}

// source is what is copied until it is told to end, and its sum.
type source struct {
	sum  hash.Hash
	sent atomic.Int64
	end  chan struct{}
}

// Read gives random bytes.
func (s *source) Read(p []byte) (int, error) {
	select {
	case <-s.end:
		return 0, io.EOF
	default:
	}
	n, _ := rand.Read(p)
	s.sent.Add(int64(n))
	return s.sum.Write(p[:n])
}

// goesOn waits until much more has been copied.
func (s *source) goesOn(t *testing.T) {
	t.Helper()
	was := s.sent.Load()
	env.Eventually(t, "the copy to go on", func() bool { return s.sent.Load() > was+4<<20 })
}

// TestAResetEndsSessions: the guest program has no time to say so. The agent hears of it, and tells the shim.
func TestAResetEndsSessions(t *testing.T) {
	l := start(t)
	l.apply(reached)
	l.vm("tiny", "to have its guest program answer", hasTools)
	for range 2 { // soon after each other: the second is told, too
		env.Eventually(t, "a command to run", func() bool { return l.exec("tiny", nil, "true").code == 0 })
		session := l.session("tiny", "sh", "-c", "echo begun; sleep 100000")
		session.await("begun")
		l.exec("tiny", nil, "/berth-shim", "reset")
		reset := time.Now()
		if code := codeOf(t, <-session.done); code != 255 || !strings.Contains(session.String(), "rebooted") {
			t.Errorf("the session ended with %d: %s", code, session)
		}
		t.Logf("it ended %v after the reset", time.Since(reset))
	}
}

// hasTools: the guest program has answered.
func hasTools(vm *v1alpha1.VirtualMachine) bool {
	return vm != nil && vm.Status.Guest != nil && vm.Status.Guest.Tools != ""
}

// TestExecWhereNothingAnswers: a guest without the program runs as any, and who wants to reach into it is told why not.
func TestExecWhereNothingAnswers(t *testing.T) {
	l := start(t)
	l.apply(strings.Replace(disked, "spec:", "spec:\n  guestTools: None", 1) + "---" + tiny)
	for name, todo := range map[string]string{"disked": "mount -r LABEL=BERTH", "tiny": "put berth-guest into its initrd"} {
		vm := l.vm(name, "to be Ready", isReady)
		l.logs(name).await("tiny: up")
		if got := l.exec(name, nil, "true"); got.code != 126 || !strings.Contains(got.err, "no guest program answers") || !strings.Contains(got.err, todo) {
			t.Errorf("%s: %+v", name, got)
		}
		if vm.Status.Guest != nil {
			t.Errorf("the status of %s says %+v", name, vm.Status.Guest)
		}
	}
	t.Log("a guest that ignores what it is offered boots as before")
	l.apply(strings.Replace(disked, "name: disked", "name: ignores", 1))
	l.vm("ignores", "to be Ready", isReady)
	l.logs("ignores").await("tiny: up")
	t.Log("one that ran without cloud-init data gets the program's disk, and no seed")
	l.patch("disked", `{"guestTools":"Offered"}`)
	l.vm("disked", "to have that pending", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && len(vm.Status.PendingChanges) == 1 &&
			vm.Status.PendingChanges[0] == v1alpha1.PendingChange{Path: "guestTools", From: "None", To: "Offered", Effect: v1alpha1.EffectRestart}
	})
	vm := l.vm("disked", "to be there", runs)
	l.patch("disked", `{"restartedAt":"now"}`)
	vm = l.vm("disked", "to be Ready in a new berth", func(now *v1alpha1.VirtualMachine) bool {
		return isReady(now) && now.Status.Berth.PodUID != vm.Status.Berth.PodUID
	})
	xml := l.onNode(vm.Status.NodeName, "virsh", "dumpxml", string(vm.UID))
	if !strings.Contains(xml, "<serial>BERTH</serial>") || strings.Contains(xml, "/seeds/") {
		t.Errorf("its domain is\n%s", xml)
	}
}

// copies copies a file of 50 MB and a tree into the guest and back.
func copies(l *lab) {
	l.Helper()
	dir := l.TempDir()
	file := make([]byte, deep(5_000_000, 50_000_000, 50_000_000)) // into a guest that is short of CPU, kubectl gives up a long copy: docs/exec.md
	_, _ = rand.Read(file)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "file"), file, 0o640),
		os.MkdirAll(filepath.Join(dir, "tree", "a", "b"), 0o750),
		os.WriteFile(filepath.Join(dir, "tree", "a", "b", "run"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(filepath.Join(dir, "tree", "empty"), nil, 0o600),
	); err != nil {
		l.Fatal(err)
	}
	for _, name := range []string{"file", "tree"} {
		l.kubectl("", "cp", filepath.Join(dir, name), "cloud:/root/"+name)
		l.kubectl("", "cp", "cloud:/root/"+name, filepath.Join(dir, "back", name))
	}
	if got, want := l.exec("cloud", nil, "sha256sum", "/root/file").out, fmt.Sprintf("%x", sha256.Sum256(file)); !strings.HasPrefix(got, want) {
		l.Errorf("in the guest the file has the sum %s, want %s", got, want)
	}
	if back, err := os.ReadFile(filepath.Join(dir, "back", "file")); err != nil || !bytes.Equal(back, file) {
		l.Errorf("the file came back with %d bytes, %v", len(back), err)
	}
	if out, err := exec.CommandContext(l.Context(), "diff", "-r", filepath.Join(dir, "tree"), filepath.Join(dir, "back", "tree")).CombinedOutput(); err != nil {
		l.Errorf("the tree came back as another: %s", out)
	}
	if got := l.exec("cloud", nil, "stat", "-c", "%a", "/root/tree/a/b/run"); got.out != "755\n" {
		l.Errorf("the mode of a file of the tree: %+v", got)
	}
}

// ran is what a command said, and its exit code.
type ran struct {
	out, err string
	code     int
}

// exec runs a command in a guest as kubectl exec does. A code of -1 is that kubectl did not come to run it.
func (l *lab) exec(vm string, stdin io.Reader, command ...string) (r ran) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), waitTimeout)
	defer cancel()
	args := []string{"-n", l.ns, "exec", vm, "--"}
	if stdin != nil {
		args = []string{"-n", l.ns, "exec", "-i", vm, "--"}
	}
	cmd := exec.CommandContext(ctx, "kubectl", append(args, command...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	if exit, is := errors.AsType[*exec.ExitError](err); is {
		r.code = exit.ExitCode()
	} else if err != nil {
		l.Fatalf("kubectl exec: %v", err)
	}
	r.out, r.err = out.String(), errs.String()
	return r
}

// session is a command that runs in a guest, and what it says.
type session struct {
	*console
	sizes chan remotecommand.TerminalSize
	done  chan error
}

// session runs a command in a guest, with streams of its own; terminal with a terminal of 132 columns and 41 rows.
func (l *lab) session(vm string, command ...string) *session { return l.run(vm, false, command) }

func (l *lab) terminal(vm string, command ...string) *session { return l.run(vm, true, command) }

func (l *lab) run(vm string, tty bool, command []string) *session {
	l.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		l.Fatal(err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		l.Fatal(err)
	}
	url := clients.CoreV1().RESTClient().Post().Namespace(l.ns).Resource("pods").Name(vm).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdin: true, Stdout: true, Stderr: !tty, TTY: tty}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, url.String())
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.Context(), waitTimeout)
	l.Cleanup(cancel)
	in, typed := io.Pipe()
	s := &session{console: l.newConsole(), sizes: make(chan remotecommand.TerminalSize, 2), done: make(chan error, 1)}
	s.in = typed
	o := remotecommand.StreamOptions{Stdin: in, Stdout: s.console, Tty: tty}
	if tty {
		s.sizes <- remotecommand.TerminalSize{Width: 132, Height: 41}
		o.TerminalSizeQueue = sizes(s.sizes)
	} else {
		o.Stderr = s.console
	}
	go func() {
		err := executor.StreamWithContext(ctx, o)
		_ = in.Close() // so that nobody waits for it to be read
		s.done <- err
	}()
	return s
}

// sizes are those that a terminal has, one after the other.
type sizes chan remotecommand.TerminalSize

// Next waits for the next.
func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// codeOf is the exit code that a session ended with.
func codeOf(t *testing.T, err error) int {
	t.Helper()
	if exit, is := errors.AsType[utilexec.CodeExitError](err); is {
		return exit.Code
	}
	if err != nil {
		t.Errorf("the session: %v", err)
		return -1
	}
	return 0
}
