package e2e

import (
	"encoding/binary"
	"fmt"
	"image"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/internal/cli/rfb"
	"github.com/berth-dev/berth/test/env"
)

// withScreen is a tiny guest's spec from there on.
const withScreen = "  display: {type: VGA}\n"

// TestScreen has viewers look at a guest's screen and type by plain kubectl port-forward, in a namespace that enforces
// restricted pods. The guest itself does not come to where they look.
func TestScreen(t *testing.T) {
	l := start(t)
	l.apply(reached + withScreen + "---" + strings.Replace(tiny, "name: tiny", "name: blind", 1))
	vm := l.vm("tiny", "to have its guest program answer", hasTools)
	berth := l.pod("tiny", "to be there", exists)

	t.Log("two viewers; what one types, both see")
	address, _ := l.portForward("tiny", "5900")
	one, two := l.viewer(address), l.viewer(address)
	if s := l.textScreen("tiny"); !s.isOn(one.picture()) || !s.isOn(two.picture()) {
		t.Errorf("the viewers do not see what is on the screen:\n%s", s)
	}
	terminal := l.session("tiny", "sh", "-c", "exec </dev/tty1; echo ready; read line; echo typed $line")
	terminal.await("ready")
	one.types("sailor\n")
	terminal.await("typed sailor")
	for _, next := range []*viewer{l.viewer(address), l.viewer(address)} { // one who comes is shown the whole
		if s := l.textScreen("tiny"); !strings.Contains(s.text, "sailor") || !s.isOn(next.picture()) {
			t.Errorf("what was typed is not seen:\n%s", s)
		}
		_ = next.Close()
	}

	t.Log("the guest itself, while there is room for more")
	knocks := ""
	for _, to := range []string{"10.0.2.1", "10.0.2.2", berth.Status.PodIP, berth.Status.HostIP, "127.0.0.1", "169.254.0.1"} {
		knocks += fmt.Sprintf("sleep 3 | timeout 4 nc %s 5900; ", to) // it must not hang up before it is greeted
	}
	if got := l.exec("tiny", nil, "sh", "-c", knocks+`printf 'GET / HTTP/1.0\r\n\r\n' | timeout 20 nc `+berth.Status.PodIP+" 80"); strings.Contains(got.out, "RFB") || !strings.Contains(got.out, "tiny ") {
		t.Errorf("it reached more than its own web server: %+v", got)
	}
	if at := l.screenPort(berth).listens; len(at) != 1 || at[0] != "0100007F" {
		t.Errorf("the screen is served at %q, want 127.0.0.1 alone", at)
	}

	t.Log("one that asks and asks, and never reads")
	elsewhere, _ := l.portForward("tiny", "5900") // of somebody else: all who go through one share its connection
	stuck := l.viewer(elsewhere)
	stuck.say([]byte("RFB 003.008\n"), []byte{1}, []byte{1}) // no password, shared
	const picture = 720 * 400 * 4                            // in bytes
	env.Eventually(t, "more than a picture to wait for it", func() bool { stuck.say(whole); return l.screenPort(berth).unsent > 2*picture })
	one.answered()
	two.answered()

	t.Log("eight, and no more")
	var others []*viewer
	env.Eventually(t, "room for five more", func() bool { // those who left have been heard leaving
		v := l.viewer(address)
		if _, err := rfb.Screenshot(v); err != nil {
			_ = v.Close()
			return false
		}
		others = append(others, v)
		return len(others) == 5
	})
	if n, err := l.viewer(address).Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
		t.Errorf("the ninth reads %d bytes, %v; want an end", n, err)
	}
	one.answered()
	two.answered()
	_ = others[0].Close()
	env.Eventually(t, "room for another", func() bool { _, err := rfb.Screenshot(l.viewer(address)); return err == nil })

	t.Log("a guest without a screen")
	l.vm("blind", "to be Ready", isReady)
	if at := l.screenPort(l.pod("blind", "to be there", exists)).listens; len(at) > 0 {
		t.Errorf("a screen is served at %q", at)
	}
	if said := l.forward("blind", "5900"); !strings.Contains(said, "lost connection to pod") {
		t.Errorf("kubectl port-forward ends with %q", said)
	}
	if now := l.vm("tiny", "to be Ready still", isReady); now.Status.Restarts != vm.Status.Restarts {
		t.Errorf("it was restarted %d times", now.Status.Restarts)
	}
}

// screenPort is the state of port 5900 in a berth.
type screenPort struct {
	listens []string // addresses, as /proc has them
	unsent  int64    // bytes that wait for a viewer, of the one for whom most do
}

func (l *lab) screenPort(berth *corev1.Pod) (p screenPort) {
	l.Helper()
	shim := l.processOf("berth-shim", berth)
	for _, family := range []string{"tcp", "tcp6"} {
		raw, err := os.ReadFile("/proc/" + shim + "/net/" + family)
		if err != nil {
			l.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line) // number, local and remote address, state, bytes to send and to be read, …
			const port, listen = ":170C", "0A"
			address, is := strings.CutSuffix(f[1], port)
			if !is {
				continue
			}
			if f[3] == listen {
				p.listens = append(p.listens, address)
				continue
			}
			queue, _, _ := strings.Cut(f[4], ":")
			unsent, err := strconv.ParseInt(queue, 16, 64)
			if err != nil {
				l.Fatal(err)
			}
			p.unsent = max(p.unsent, unsent)
		}
	}
	return p
}

// viewer is somebody who looks at a guest's screen and has its keyboard.
type viewer struct {
	*lab
	net.Conn
}

// viewer connects to a screen, and says nothing yet.
func (l *lab) viewer(address string) *viewer {
	l.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	return &viewer{l, conn}
}

// picture is what the viewer sees first.
func (v *viewer) picture() image.Image {
	v.Helper()
	picture, err := rfb.Screenshot(v)
	if err != nil {
		v.Fatal(err)
	}
	return picture
}

func (v *viewer) say(messages ...[]byte) {
	v.Helper()
	for _, m := range messages {
		if _, err := v.Write(m); err != nil {
			v.Fatalf("a viewer: %v", err)
		}
	}
}

// types presses keys, and releases them (RFC 6143, 7.5.4).
func (v *viewer) types(text string) {
	v.Helper()
	for _, key := range strings.ReplaceAll(text, "\n", "\r") {
		keysym := uint32(key)
		if key < ' ' {
			keysym |= 0xff00
		}
		for _, down := range []byte{1, 0} {
			v.say(binary.BigEndian.AppendUint32([]byte{4, down, 0, 0}, keysym))
		}
	}
}

// whole asks for all of a screen of text (RFC 6143, 7.5.3).
var whole = []byte{3, 0, 0, 0, 0, 0, 720 >> 8, 720 & 255, 400 >> 8, 400 & 255}

// answered: one who has seen a picture asks for another, and gets it (RFC 6143, 7.6.1).
func (v *viewer) answered() {
	v.Helper()
	v.say(whole)
	var head struct {
		Kind, Padding byte
		Rectangles    uint16
	}
	err := binary.Read(v, binary.BigEndian, &head)
	for n := head.Rectangles; n > 0 && err == nil; n-- {
		var rectangle struct {
			X, Y, Width, Height uint16
			Encoding            int32
		}
		if err = binary.Read(v, binary.BigEndian, &rectangle); err == nil && rectangle.Encoding == 0 { // else there are no pixels
			_, err = io.CopyN(io.Discard, v, 4*int64(rectangle.Width)*int64(rectangle.Height))
		}
	}
	if err != nil || head.Kind != 0 {
		v.Fatalf("a viewer is sent a message of type %d, %v", head.Kind, err)
	}
}

// textScreen is a guest's screen as its kernel has it, by vcs(4).
type textScreen struct {
	rows, columns, cursor int
	text                  string
}

// textScreen reads it in the guest.
func (l *lab) textScreen(vm string) (s textScreen) {
	l.Helper()
	got := l.exec(vm, nil, "cat", "/dev/vcsa1")
	if len(got.out) < 4 {
		l.Fatalf("reading its screen in the guest: %+v", got)
	}
	s.rows, s.columns = int(got.out[0]), int(got.out[1])
	s.cursor = int(got.out[3])*s.columns + int(got.out[2])
	for i := 4; i < len(got.out); i += 2 { // each with its colours
		s.text += got.out[i : i+1]
	}
	return s
}

func (s textScreen) String() (lines string) {
	for at := 0; at+s.columns <= len(s.text); at += s.columns {
		lines += strings.TrimRight(s.text[at:at+s.columns], " \x00") + "\n"
	}
	return lines
}

// isOn tells whether a picture shows it: something is where the text is, and nothing where it is not. The cursor blinks.
func (s textScreen) isOn(picture image.Image) bool {
	size := picture.Bounds().Size()
	cell := image.Rect(0, 0, size.X/s.columns, size.Y/s.rows)
	if cell.Empty() || len(s.text) != s.rows*s.columns {
		return false
	}
	for i, letter := range []byte(s.text) {
		blank := letter == ' ' || letter == 0
		at := image.Pt(i%s.columns*cell.Dx(), i/s.columns*cell.Dy())
		if i != s.cursor && blank != isPlain(picture, cell.Add(at)) {
			return false
		}
	}
	return true
}

// isPlain: it is of one colour.
func isPlain(picture image.Image, part image.Rectangle) bool {
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if picture.At(x, y) != picture.At(part.Min.X, part.Min.Y) {
				return false
			}
		}
	}
	return true
}
