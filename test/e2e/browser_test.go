package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

// TestScreenInBrowser opens the page of kubectl vm vnc twice in a real browser, which shows the login prompt of a Debian,
// and types a user's name on both pages.
func TestScreenInBrowser(t *testing.T) {
	chromium := findChromium(t)
	l := start(t)
	l.apply(cloud + withScreen)
	vm := l.vm("cloud", "to have its guest program answer", hasTools)
	l.logs("cloud").await("cloud login:") // it knows its name
	// The lab's Debian has no prompt on its screen until it is asked for.
	if got := l.exec("cloud", nil, "sh", "-c", "systemctl unmask getty@tty1 && systemctl start getty@tty1 && until grep -q 'cloud login:' /dev/vcs1; do sleep 0.2; done"); got.code != 0 {
		t.Fatalf("starting a login prompt: %+v", got)
	}
	u := l.user()
	url := u.vnc(vm.Name)
	b := l.browser(chromium)
	first, second := b.open(url), b.open(url)
	both := func(text string) {
		t.Helper()
		s := l.textScreen("cloud")
		if !strings.Contains(s.text, text) {
			t.Fatalf("its screen does not have %q:\n%s", text, s)
		}
		env.Eventually(t, "both pages to show "+text, func() bool { return s.isOn(first.picture()) && s.isOn(second.picture()) })
	}
	both("cloud login: ")
	before := first.picture()

	first.types("sai")
	second.types("lor")
	if got := l.exec("cloud", nil, "sh", "-c", "until grep -q 'cloud login: sailor' /dev/vcs1; do sleep 0.2; done"); got.code != 0 {
		t.Fatalf("waiting for what was typed: %+v", got)
	}
	both("cloud login: sailor")
	if l.textScreen("cloud").isOn(before) {
		t.Error("the picture before is as that after")
	}

	file := filepath.Join(t.TempDir(), "screen.png")
	u.does("screenshot cloud " + file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	shot, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the screenshot is %v in %d bytes", shot.Bounds().Size(), len(raw))
	if page := first.picture().Bounds(); shot.Bounds() != page || !l.textScreen("cloud").isOn(shot) {
		t.Errorf("the screenshot, of %v, is not what the page shows, of %v", shot.Bounds(), page)
	}
}

// findChromium finds the browser. The tests of faults have the lab install it.
func findChromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil && *depth > 0 {
		(&lab{T: t}).build("chromium")
		path, err = exec.LookPath("chromium")
	}
	if err != nil {
		env.Missing(t, "needs chromium: lab chromium installs it")
	}
	return path
}

// vnc runs kubectl vm vnc, and returns the page that it serves.
func (u *user) vnc(vm string) (url string) {
	u.Helper()
	opener := u.TempDir() // in the place of the browser of whoever runs this
	if err := os.WriteFile(filepath.Join(opener, "xdg-open"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		u.Fatal(err)
	}
	cmd := exec.CommandContext(u.Context(), "kubectl", "vm", "vnc", vm)
	for _, variable := range u.environment {
		if path, is := strings.CutPrefix(variable, "PATH="); is {
			variable = "PATH=" + opener + ":" + path
		}
		cmd.Env = append(cmd.Env, variable)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		u.Fatal(err)
	}
	u.Cleanup(func() { _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		u.Fatalf("kubectl vm vnc says %q: %v", line, err)
	}
	return strings.TrimSpace(line)
}

// browser is a Chromium without a window, driven by the Chrome DevTools Protocol over a pair of pipes.
type browser struct {
	*lab
	in   *os.File
	out  *bufio.Reader
	last int // call's number
}

func (l *lab) browser(chromium string) *browser {
	l.Helper()
	theirIn, in, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	_ = out.SetReadDeadline(time.Now().Add(waitTimeout))
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+l.TempDir(), "--remote-debugging-pipe")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4, as it expects them
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	_, _ = theirIn.Close(), theirOut.Close()
	l.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it has many processes
		_ = cmd.Wait()
		_, _ = in.Close(), out.Close()
	})
	return &browser{lab: l, in: in, out: bufio.NewReader(out)}
}

// call calls a method, of a page or with "" of the browser, and reads its result.
func (b *browser) call(page, method string, arguments map[string]any, result any) {
	b.Helper()
	b.last++
	call := map[string]any{"id": b.last, "method": method, "params": arguments}
	if page != "" {
		call["sessionId"] = page
	}
	raw, err := json.Marshal(call)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		b.Fatalf("%s: %v", method, err)
	}
	for {
		raw, err := b.out.ReadBytes(0)
		if err != nil {
			b.Fatalf("%s: %v", method, err)
		}
		var answer struct {
			ID            int
			Result, Error json.RawMessage
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &answer); err != nil || answer.Error != nil {
			b.Fatalf("%s: %v: %s", method, err, raw)
		}
		if answer.ID != b.last { // it tells of what happens meanwhile
			continue
		}
		if result != nil {
			err = json.Unmarshal(answer.Result, result)
		}
		if err != nil {
			b.Fatalf("%s: %v: %s", method, err, raw)
		}
		return
	}
}

// page is one with noVNC.
type page struct {
	*browser
	session string
}

// open opens a page in a window that believes that it is in front.
func (b *browser) open(url string) page {
	b.Helper()
	var target struct{ TargetID string }
	b.call("", "Target.createTarget", map[string]any{"url": url, "newWindow": true}, &target)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	p := page{b, attached.SessionID}
	p.call(p.session, "Emulation.setFocusEmulationEnabled", map[string]any{"enabled": true}, nil)
	return p
}

// picture is what the page's canvas shows, nothing while there is none.
func (p page) picture() image.Image {
	p.Helper()
	var got struct{ Result struct{ Value string } }
	p.call(p.session, "Runtime.evaluate", map[string]any{
		"expression": "document.querySelector('#screen canvas')?.toDataURL() ?? ''", "returnByValue": true,
	}, &got)
	_, data, _ := strings.Cut(got.Result.Value, "base64,")
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		p.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(raw))
	if err != nil { // there is no screen yet
		return image.NewNRGBA(image.Rectangle{})
	}
	return picture
}

// types presses keys of small letters, and releases them.
func (p page) types(text string) {
	p.Helper()
	for _, letter := range text {
		key := map[string]any{"type": "keyDown", "key": string(letter), "code": "Key" + strings.ToUpper(string(letter)), "text": string(letter)}
		p.call(p.session, "Input.dispatchKeyEvent", key, nil)
		key["type"] = "keyUp"
		delete(key, "text")
		p.call(p.session, "Input.dispatchKeyEvent", key, nil)
	}
}
