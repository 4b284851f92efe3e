package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// plugin builds kubectl-vm, once, and returns its directory.
var plugin = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(env.Root(), "_out", "bin")
	out, err := exec.Command("go", "build", "-C", env.Root(), "-o", filepath.Join(dir, "kubectl-vm"), "./cmd/kubectl-vm").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building kubectl-vm: %w: %s", err, out)
	}
	return dir, err
})

// user is somebody with kubectl vm.
type user struct {
	*lab
	environment []string
}

func (l *lab) user() *user {
	l.Helper()
	dir, err := plugin()
	if err != nil {
		l.Fatal(err)
	}
	return &user{l, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG="+l.kubeconfig(), "HOME="+l.TempDir())}
}

// try runs kubectl vm.
func (u *user) try(args ...string) (out, errOut string, code int) {
	u.Helper()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(u.Context(), "kubectl", append([]string{"vm"}, args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = u.environment, &o, &e
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		u.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// does runs a command line that succeeds, and finds patterns in what it prints.
func (u *user) does(line string, patterns ...string) string {
	u.Helper()
	out, errOut, code := u.try(strings.Fields(expand(line))...)
	if code != 0 {
		u.Fatalf("%s ends with %d: %s", line, code, errOut)
	}
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			u.Errorf("%s does not print %q:\n%s", line, p, out)
		}
	}
	return out
}

const kernelRun = "-m 96Mi --kernel --append no_timer_check $KERNEL"

// TestThrowAwayOfAKilledClient: the guest of a command that never ends, and then all that was made for it, end with kubectl.
func TestThrowAwayOfAKilledClient(t *testing.T) {
	l := start(t)
	u := l.user()
	shown := l.newConsole()
	cmd := exec.CommandContext(t.Context(), "kubectl", "vm", "run", "--rm", "-p", "80", "--name", "deb", "-m", "512Mi", expand("$CLOUD"), "--", "sh", "-c", "echo begun; exec sleep 9999")
	cmd.Env, cmd.Stdout, cmd.Stderr = u.environment, shown, shown
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	shown.await("begun")
	_ = cmd.Process.Kill() // the plugin is kubectl's own process by now
	_ = cmd.Wait()
	l.vm("deb", "to have ended as if hung up", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && vm.Status.Ended != nil && vm.Status.LastExit != nil && vm.Status.LastExit.ExitCode == 129
	})
	l.vm("deb", "to be gone", isGone)
}

// TestKubectlVM walks the verbs on a small guest.
func TestKubectlVM(t *testing.T) {
	l := start(t)
	u := l.user()
	u.does("run -d --name tiny -p 80 "+kernelRun, "^virtualmachine.berth.dev/tiny created\n$")
	u.does("wait tin --timeout 10m", "condition met")
	l.logs("tiny").await("tiny: up")
	u.does("ps -o wide", `tiny +Running +\d+s`)
	u.does("why tiny", "Nothing is in its way", "console:", "tiny: up")
	u.does("inspect tiny -o jsonpath={.items[*].kind}", "^VirtualMachine Pod VirtualMachineHost( Event)+$")
	u.does("events tiny", "Started")
	u.does("logs tiny --tail=1", ".")
	u.does("pause tiny", "tiny paused")
	u.does("why tiny", "next: kubectl vm unpause tiny")
	u.does("unpause tiny", "tiny unpaused")
	u.does("restart tiny", "tiny restarted")
	u.does("stop -t 5 tiny", "tiny stopped")
	u.does("start tiny", "tiny started")
	u.does("kill tiny", "tiny killed")
	u.does("ps -a", `tiny +Stopped`)
	u.does("start tiny", "tiny started")
	u.does("reset tiny", "tiny reset")
	l.vm("tiny", "to have been reset", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.Resets > 0 })
	u.does("nmi tiny", "tiny interrupted")
	u.does("stats", "tiny")
	u.does("images", "USED BY")
	u.does("system df", "stray disks")
	u.does("version", `operator +\S+`, "ACCELERATION")
	if out, errOut, code := u.try("doctor"); code > 1 || !strings.Contains(out, "ok     CustomResourceDefinition virtualmachines.berth.dev") {
		t.Errorf("doctor ends with %d: %s\n%s", code, errOut, out)
	}
	if _, errOut, code := u.try("rm", "tiny"); code != 1 || !strings.Contains(errOut, "has a guest") {
		t.Errorf("rm of a guest that runs ends with %d: %s", code, errOut)
	}
	u.does("rm -f tiny", "tiny deleted")
	l.vm("tiny", "to be gone", isGone)
}

// terminal is a real one, of tmux.
type terminal struct {
	*user
	*console
	socket string
}

func (u *user) terminal() *terminal {
	u.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		env.Missing(u, "needs tmux")
	}
	dir := u.TempDir()
	term := &terminal{u, u.newConsole(), filepath.Join(dir, "tmux")}
	u.Cleanup(func() { _ = exec.Command("tmux", "-S", term.socket, "kill-server").Run() })
	term.tmux("-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50", "sh")
	fifo := filepath.Join(dir, "shown")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		u.Fatalf("mkfifo: %v: %s", err, out)
	}
	go func() {
		if f, err := os.Open(fifo); err == nil {
			_, _ = io.Copy(term.console, f)
		}
	}()
	term.tmux("pipe-pane", "cat >"+fifo)
	return term
}

func (t *terminal) tmux(args ...string) {
	t.user.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", t.socket}, args...)...)
	cmd.Env = t.environment
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
}

// types types a line.
func (t *terminal) types(line string) {
	t.user.Helper()
	t.tmux("send-keys", "-l", line)
	t.tmux("send-keys", "Enter")
}

// TestTerminal: a console is joined from its first byte, left, joined again, and ends with the guest's code.
func TestTerminal(t *testing.T) {
	l := start(t)
	term := l.user().terminal()
	term.types("kubectl vm run --rm -it --name tiny " + expand(kernelRun) + "; echo code=$?")
	term.await("Attached to tiny. Leave by ctrl-].")
	term.await("tiny: up")
	if shown := term.String(); strings.Count(shown, "Linux version") != 1 || strings.Index(shown, "Linux version") > strings.Index(shown, "tiny: up") {
		t.Errorf("the console is not shown once from its start:\n%s", shown)
	}
	term.tmux("send-keys", "C-]")
	term.await("Detached from tiny, which runs on: kubectl vm attach tiny")
	term.await("code=0")
	term.types("kubectl vm attach tiny; echo again=$?")
	term.awaitTimes("Attached to tiny. Leave by ctrl-].", 2)
	term.types("exit 7")
	term.await("tiny: ends with 7")
	term.await("The console of tiny ended.")
	l.vm("tiny", "to have ended with 7", func(vm *v1alpha1.VirtualMachine) bool {
		return vm == nil || vm.Status.LastExit != nil && vm.Status.LastExit.ExitCode == 7
	})

	term.types("kubectl vm run --rm -it --name job " + expand(kernelRun) + " -- exit=9; echo code=$?")
	term.await("tiny: ends with 9")
	term.await("code=9")
	l.vm("job", "to be gone", isGone)
}

// TestIntoTheGuest: commands, files and processes of a Debian that nobody prepared.
func TestIntoTheGuest(t *testing.T) {
	l := start(t)
	u := l.user()
	u.does("run -d --name deb -m 512Mi --display $CLOUD")
	l.vm("deb", "to answer by its guest program", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && vm.Status.Guest != nil && vm.Status.Guest.Tools != "" && has(vm, v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonStarted)
	})
	u.does("exec deb -- uname -s", "^Linux\n$")
	u.does("exec -w /etc -e A=b deb -- sh -c pwd", "^/etc\n$")
	for _, code := range []int{0, 3, 137} {
		if _, errOut, got := u.try("exec", "deb", "--", "sh", "-c", fmt.Sprintf("exit %d", code)); got != code {
			t.Errorf("exit %d ends with %d: %s", code, got, errOut)
		}
	}
	if _, errOut, got := u.try("exec", "deb", "--", "no-such-command"); got != 127 {
		t.Errorf("a command that is missing ends with %d: %s", got, errOut)
	}
	u.does("top deb", "PID", "systemd")

	here := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(here, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(filepath.Join(here, "deep", "file"), content, 0o741); err != nil {
		t.Fatal(err)
	}
	u.does("cp " + here + " deb:/root/there")
	u.does("exec deb -- stat -c %a,%s /root/there/deep/file", "^741,1048576\n$")
	u.does("cp deb:/root/there " + here + "-back")
	back, err := os.ReadFile(filepath.Join(here+"-back", "deep", "file"))
	if err != nil || !bytes.Equal(back, content) {
		t.Errorf("what came back has %d bytes, %v", len(back), err)
	}
	picture := filepath.Join(t.TempDir(), "screen.png")
	u.does("screenshot deb " + picture)
	if raw, err := os.ReadFile(picture); err != nil || !bytes.HasPrefix(raw, []byte("\x89PNG")) {
		t.Errorf("the picture is %.8q, %v", raw, err)
	}
	u.does("rm -f deb")
}
