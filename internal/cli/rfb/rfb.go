package rfb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
)

// Bounds on what a server may say.
const (
	maxPixels   = 7680 * 4320
	maxText     = 1 << 20 // of a reason, a name or a clipboard, in bytes
	maxMessages = 10000
)

const version = "RFB 003.008\n"

// Types of security, messages and encodings (RFC 6143, 7.2, 7.6, 7.7).
const (
	securityNone        = 1
	framebufferUpdate   = 0
	setColourMapEntries = 1
	bell                = 2
	serverCutText       = 3
	encodingRaw         = 0
	encodingDesktopSize = -223 // no pixels: the screen has another size from here on
)

// wishes of the client: SetPixelFormat (32 bits a pixel, of which the first three bytes are blue, green and red) and
// SetEncodings (raw, and DesktopSize).
var wishes = []byte{0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, encodingRaw, 255, 255, 255, 256 + encodingDesktopSize}

// Screenshot reads the whole screen once.
func Screenshot(conn io.ReadWriter) (image.Image, error) {
	c := &client{r: bufio.NewReader(conn), w: conn}
	if c.handshake(); c.err == nil {
		c.picture()
	}
	if c.err != nil {
		return nil, fmt.Errorf("VNC: %w", c.err)
	}
	return c.screen, nil
}

// client keeps its first error, after which it reads and writes nothing.
type client struct {
	r       *bufio.Reader
	w       io.Writer
	err     error
	screen  *image.NRGBA
	missing int // pixels that have not come
}

func (c *client) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *client) read(into any) {
	if c.err == nil {
		c.err = binary.Read(c.r, binary.BigEndian, into)
	}
}

func (c *client) write(message []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(message)
	}
}

// text reads a text with its length before it.
func (c *client) text() string {
	var length uint32
	if c.read(&length); length > maxText {
		c.fail("the server sends a text of %d bytes", length)
	}
	if c.err != nil {
		return ""
	}
	text := make([]byte, length)
	c.read(text)
	return string(text)
}

func (c *client) handshake() {
	greeting, count, result := make([]byte, len(version)), uint8(0), uint32(0)
	if c.read(greeting); string(greeting) != version {
		c.fail("the server speaks %q, not %q", greeting, version)
	}
	c.write(greeting)
	c.read(&count)
	types := make([]byte, count)
	c.read(types)
	if c.err == nil && count > 0 && !bytes.Contains(types, []byte{securityNone}) {
		c.fail("the server wants a password")
	}
	if count > 0 {
		c.write([]byte{securityNone})
		c.read(&result)
	}
	if c.err == nil && (count == 0 || result != 0) {
		c.fail("the server refuses: %.200q", c.text())
	}
	var screen struct {
		Width, Height uint16
		PixelFormat   [16]byte
	}
	c.write([]byte{1}) // shared: other viewers stay
	c.read(&screen)
	c.text() // the desktop's name
	c.resize(screen.Width, screen.Height)
	c.write(wishes)
}

// resize begins a picture of another size.
func (c *client) resize(width, height uint16) {
	if pixels := int(width) * int(height); pixels == 0 || pixels > maxPixels {
		c.fail("the screen is %d x %d", width, height)
	} else if c.err == nil {
		c.screen, c.missing = image.NewNRGBA(image.Rect(0, 0, int(width), int(height))), pixels
	}
}

// picture reads until every pixel of the screen has come.
func (c *client) picture() {
	ask := true
	for range maxMessages {
		if size := c.screen.Rect.Max; ask { // FramebufferUpdateRequest, of all
			c.write(binary.BigEndian.AppendUint32([]byte{3, 0, 0, 0, 0, 0}, uint32(size.X)<<16|uint32(size.Y))) //nolint:gosec // 16 bits each
		}
		var kind, padding uint8
		var first, count uint16
		switch c.read(&kind); kind {
		case framebufferUpdate:
			c.read(&padding)
			for c.read(&count); count > 0 && c.err == nil; count-- {
				c.rectangle()
			}
		case setColourMapEntries:
			c.read(&padding)
			c.read(&first)
			c.read(&count)
			c.read(make([]byte, 6*int(count)))
		case serverCutText:
			c.read(make([]byte, 3))
			c.text()
		case bell:
		default:
			c.fail("the server sends a message of type %d", kind)
		}
		if c.err != nil || c.missing == 0 {
			return
		}
		ask = kind == framebufferUpdate // it had all that there was: the guest has changed the screen's size
	}
	c.err = errors.New("the server sends much and no whole screen")
}

func (c *client) rectangle() {
	var head struct {
		X, Y, Width, Height uint16
		Encoding            int32
	}
	c.read(&head)
	r := image.Rect(int(head.X), int(head.Y), int(head.X)+int(head.Width), int(head.Y)+int(head.Height))
	switch {
	case head.Encoding == encodingDesktopSize && c.err == nil:
		c.resize(head.Width, head.Height)
		return
	case head.Encoding != encodingRaw:
		c.fail("the server sends the encoding %d, which it was not asked for", head.Encoding)
	case r.Max.X > c.screen.Rect.Max.X || r.Max.Y > c.screen.Rect.Max.Y: // not In: it takes what is empty for inside
		c.fail("the server sends %v, outside of the screen %v", r, c.screen.Rect)
	}
	line := make([]byte, 4*r.Dx())
	for y := r.Min.Y; y < r.Max.Y && c.err == nil; y++ {
		c.read(line)
		at := c.screen.Pix[c.screen.PixOffset(r.Min.X, y):]
		for i := 0; i < len(line); i += 4 {
			if at[i+3] == 0 {
				c.missing--
			}
			at[i], at[i+1], at[i+2], at[i+3] = line[i+2], line[i+1], line[i], 255
		}
	}
}
