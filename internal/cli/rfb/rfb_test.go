package rfb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

// server says what it is given, whatever it is told.
type server struct {
	*bytes.Reader
	heard bytes.Buffer
}

func (s *server) Write(p []byte) (int, error) { return s.heard.Write(p) }

func said(parts ...any) []byte {
	var all bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all.WriteString(p)
		case []byte:
			all.Write(p)
		default:
			_ = binary.Write(&all, binary.BigEndian, p)
		}
	}
	return all.Bytes()
}

// hello is a handshake of a screen of that size.
func hello(width, height uint16) []byte {
	return said(version, []byte{1, securityNone}, uint32(0), width, height, make([]byte, 16), uint32(4), "QEMU")
}

func rect(x, y, width, height uint16, encoding int32, pixels ...byte) []byte {
	return said(x, y, width, height, encoding, pixels)
}

func update(rects ...[]byte) []byte {
	return said([]byte{framebufferUpdate, 0}, uint16(len(rects)), bytes.Join(rects, nil))
}

func TestScreenshot(t *testing.T) {
	red, green := []byte{1, 2, 250, 0}, []byte{3, 251, 4, 0}
	for name, stream := range map[string][]byte{
		"in one part":              said(hello(2, 1), update(rect(0, 0, 2, 1, encodingRaw, append(red, green...)...))),
		"in parts":                 said(hello(2, 1), update(rect(1, 0, 1, 1, encodingRaw, green...)), update(rect(0, 0, 1, 1, encodingRaw, red...))),
		"a part twice":             said(hello(2, 1), update(rect(1, 0, 1, 1, encodingRaw, red...)), update(rect(1, 0, 1, 1, encodingRaw, green...), rect(0, 0, 1, 1, encodingRaw, red...))),
		"of a screen that grows":   said(hello(1, 1), update(rect(0, 0, 2, 1, encodingDesktopSize)), update(rect(0, 0, 2, 1, encodingRaw, append(red, green...)...))),
		"of a screen that shrinks": said(hello(9, 9), update(rect(0, 0, 9, 8, encodingRaw, make([]byte, 4*9*8)...)), update(rect(0, 0, 2, 1, encodingDesktopSize), rect(0, 0, 2, 1, encodingRaw, append(red, green...)...))),
		"between other messages":   said(hello(2, 1), []byte{bell}, []byte{serverCutText, 0, 0, 0}, uint32(3), "abc", []byte{setColourMapEntries, 0}, uint16(0), uint16(1), make([]byte, 6), update(rect(0, 0, 2, 1, encodingRaw, append(red, green...)...))),
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{Reader: bytes.NewReader(stream)}
			picture, err := Screenshot(s)
			if err != nil {
				t.Fatal(err)
			}
			if picture.Bounds() != image.Rect(0, 0, 2, 1) || picture.At(0, 0) != (color.NRGBA{250, 2, 1, 255}) || picture.At(1, 0) != (color.NRGBA{4, 251, 3, 255}) {
				t.Errorf("%v: %v %v", picture.Bounds(), picture.At(0, 0), picture.At(1, 0))
			}
			if !bytes.HasPrefix(s.heard.Bytes(), said(version, []byte{securityNone, 1}, wishes)) {
				t.Errorf("the server heard %q", s.heard.Bytes())
			}
		})
	}
}

func TestBadServers(t *testing.T) {
	for name, c := range map[string]struct {
		stream []byte
		says   string
	}{
		"another protocol":              {said("SSH-2.0-x\r\n\x00"), "speaks"},
		"an old one":                    {said("RFB 003.003\n"), "speaks"},
		"a refusal":                     {said(version, []byte{0}, uint32(5), "no\x1b[m"), `refuses: "no\x1b[m"`},
		"a password":                    {said(version, []byte{1, 2}), "wants a password"},
		"no after all":                  {said(version, []byte{1, 1}, uint32(1), uint32(4), "full"), `refuses: "full"`},
		"an endless reason":             {said(version, []byte{0}, uint32(1<<31)), "text of 2147483648 bytes"},
		"no screen":                     {hello(0, 5), "0 x 5"},
		"a huge screen":                 {hello(65535, 65535), "65535 x 65535"},
		"pixels outside":                {said(hello(2, 2), update(rect(1, 1, 2, 1, encodingRaw))), "outside of the screen"},
		"nothing, outside":              {said(hello(2, 2), update(rect(9, 1, 0, 1, encodingRaw))), "outside of the screen"},
		"an encoding of its own choice": {said(hello(2, 2), update(rect(0, 0, 2, 2, 7))), "encoding 7"},
		"a screen that grows huge":      {said(hello(2, 2), update(rect(0, 0, 65535, 65535, encodingDesktopSize))), "65535 x 65535"},
		"a message that there is not":   {said(hello(2, 2), []byte{99}), "message of type 99"},
		"an endless clipboard":          {said(hello(2, 2), []byte{serverCutText, 0, 0, 0}, uint32(1<<30)), "text of"},
		"many bells":                    {said(hello(2, 2), bytes.Repeat([]byte{bell}, maxMessages)), "no whole screen"},
		"an end":                        {hello(2, 2), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Screenshot(&server{Reader: bytes.NewReader(c.stream)})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, not %q", err, c.says)
			}
		})
	}
}

func FuzzScreenshot(f *testing.F) {
	f.Add(said(hello(2, 1), update(rect(0, 0, 2, 1, encodingRaw, make([]byte, 8)...))))
	f.Add(said(version, []byte{0}, uint32(5), "sorry"))
	f.Add(said(hello(1, 1), []byte{bell, setColourMapEntries, 0}, uint16(0), uint16(1), make([]byte, 6)))
	f.Fuzz(func(t *testing.T, stream []byte) {
		picture, err := Screenshot(&server{Reader: bytes.NewReader(stream)})
		if err != nil {
			return
		}
		size := picture.Bounds().Size()
		if size.X == 0 || size.Y == 0 || 4*size.X*size.Y > len(stream) {
			t.Errorf("a picture of %v out of %d bytes", size, len(stream))
		}
	})
}

// TestQEMU takes a picture of a real QEMU's screen, which shows its firmware.
func TestQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		env.Missing(t, "needs qemu-system-x86_64")
	}
	socket := filepath.Join(t.TempDir(), "vnc")
	run := exec.CommandContext(t.Context(), qemu, "-accel", "tcg", "-m", "64", "-nodefaults", "-vga", "std", "-vnc", "unix:"+socket, "-monitor", "stdio")
	monitor, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = io.WriteString(monitor, "quit\n")
		_ = run.Wait()
	})
	if _, err := io.WriteString(monitor, "info status\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(prompt); !strings.Contains(lines.Text(), "VM status"); { // once it answers, it listens
		if !lines.Scan() {
			t.Fatalf("QEMU ends before it answers: %v", lines.Err())
		}
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		picture, err := Screenshot(conn)
		_ = conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		size := picture.Bounds().Size()
		colours := map[color.Color]bool{}
		for y := range size.Y {
			for x := range size.X {
				colours[picture.At(x, y)] = true
			}
		}
		if size.X >= 640 && size.Y >= 400 && len(colours) > 1 { // SeaBIOS has written something
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the screen is %v, of %d colours", size, len(colours))
		}
	}
}
