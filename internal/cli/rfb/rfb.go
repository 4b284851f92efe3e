package rfb

import (
	"bufio"
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
	maxResizes  = 16
	maxMessages = 10000
)

const version = "RFB 003.008\n"

// Types of security, messages and encodings (RFC 6143, 7.2, 7.5, 7.6, 7.7).
const (
	securityNone = 1

	setPixelFormat           = 0
	setEncodings             = 2
	framebufferUpdateRequest = 3

	framebufferUpdate   = 0
	setColourMapEntries = 1
	bell                = 2
	serverCutText       = 3

	encodingRaw         = 0
	encodingDesktopSize = -223
)

// pixelFormat is 32 bits a pixel, little-endian, in which blue, green and red are the first three bytes.
var pixelFormat = []byte{32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}

// Screenshot reads the whole screen once.
func Screenshot(conn io.ReadWriter) (image.Image, error) {
	c := &client{r: bufio.NewReader(conn), w: conn}
	if err := c.handshake(); err != nil {
		return nil, fmt.Errorf("VNC: %w", err)
	}
	if err := c.picture(); err != nil {
		return nil, fmt.Errorf("VNC: %w", err)
	}
	return c.screen, nil
}

type client struct {
	r       *bufio.Reader
	w       io.Writer
	screen  *image.NRGBA
	missing int // pixels that have not come
	resizes int
}

func (c *client) handshake() error {
	greeting := make([]byte, len(version))
	if _, err := io.ReadFull(c.r, greeting); err != nil {
		return err
	}
	if string(greeting) != version {
		return fmt.Errorf("the server speaks %q, not %q", greeting, version)
	}
	if _, err := io.WriteString(c.w, version); err != nil {
		return err
	}
	count, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	if count == 0 {
		return c.refusal()
	}
	types := make([]byte, count)
	if _, err := io.ReadFull(c.r, types); err != nil {
		return err
	}
	if !contains(types, securityNone) {
		return errors.New("the server wants a password")
	}
	if _, err := c.w.Write([]byte{securityNone}); err != nil {
		return err
	}
	var result uint32
	if err := binary.Read(c.r, binary.BigEndian, &result); err != nil {
		return err
	}
	if result != 0 {
		return c.refusal()
	}
	if _, err := c.w.Write([]byte{1}); err != nil { // shared: other viewers stay
		return err
	}
	var size struct{ Width, Height uint16 }
	if err := binary.Read(c.r, binary.BigEndian, &size); err != nil {
		return err
	}
	if _, err := c.r.Discard(len(pixelFormat)); err != nil {
		return err
	}
	if _, err := c.text(); err != nil { // the desktop's name
		return err
	}
	if err := c.resize(int(size.Width), int(size.Height)); err != nil {
		return err
	}
	hello := append([]byte{setPixelFormat, 0, 0, 0}, pixelFormat...)
	hello = append(hello, setEncodings, 0, 0, 2)
	hello = binary.BigEndian.AppendUint32(hello, encodingRaw)
	desktopSize := int32(encodingDesktopSize)
	hello = binary.BigEndian.AppendUint32(hello, uint32(desktopSize)) //nolint:gosec // two's complement, as RFC 6143 has it
	_, err = c.w.Write(hello)
	return err
}

func contains(types []byte, wanted byte) bool {
	for _, t := range types {
		if t == wanted {
			return true
		}
	}
	return false
}

// refusal is the reason that a server gives.
func (c *client) refusal() error {
	reason, err := c.text()
	if err != nil {
		return err
	}
	return fmt.Errorf("the server refuses: %.200q", reason)
}

// text reads a text with its length before it.
func (c *client) text() (string, error) {
	var length uint32
	if err := binary.Read(c.r, binary.BigEndian, &length); err != nil {
		return "", err
	}
	if length > maxText {
		return "", fmt.Errorf("the server sends a text of %d bytes", length)
	}
	text := make([]byte, length)
	_, err := io.ReadFull(c.r, text)
	return string(text), err
}

// resize begins a screen of another size.
func (c *client) resize(width, height int) error {
	if c.resizes++; c.resizes > maxResizes {
		return errors.New("the screen changes its size again and again")
	}
	if width == 0 || height == 0 || width*height > maxPixels {
		return fmt.Errorf("the screen is %d x %d", width, height)
	}
	c.screen, c.missing = image.NewNRGBA(image.Rect(0, 0, width, height)), width*height
	return nil
}

// request asks for the whole screen.
func (c *client) request() error {
	size := c.screen.Rect.Size()
	message := []byte{framebufferUpdateRequest, 0, 0, 0, 0, 0}
	message = binary.BigEndian.AppendUint16(message, uint16(size.X)) //nolint:gosec // it was a uint16
	message = binary.BigEndian.AppendUint16(message, uint16(size.Y)) //nolint:gosec // it was a uint16
	_, err := c.w.Write(message)
	return err
}

// picture asks for the screen and reads until every pixel of it has come.
func (c *client) picture() error {
	if err := c.request(); err != nil {
		return err
	}
	for range maxMessages {
		kind, err := c.r.ReadByte()
		if err != nil {
			return err
		}
		switch kind {
		case framebufferUpdate:
			err = c.update()
		case setColourMapEntries:
			err = c.skipColours()
		case bell:
		case serverCutText:
			if _, err = c.r.Discard(3); err == nil {
				_, err = c.text()
			}
		default:
			err = fmt.Errorf("the server sends a message of type %d", kind)
		}
		if err != nil || c.missing == 0 {
			return err
		}
	}
	return errors.New("the server sends much and no whole screen")
}

func (c *client) skipColours() error {
	var head struct {
		_            uint8
		First, Count uint16
	}
	if err := binary.Read(c.r, binary.BigEndian, &head); err != nil {
		return err
	}
	_, err := c.r.Discard(6 * int(head.Count))
	return err
}

// update reads rectangles of the screen.
func (c *client) update() error {
	var head struct {
		_     uint8
		Count uint16
	}
	if err := binary.Read(c.r, binary.BigEndian, &head); err != nil {
		return err
	}
	isResized := false
	for range head.Count {
		var r struct {
			X, Y, Width, Height uint16
			Encoding            int32
		}
		if err := binary.Read(c.r, binary.BigEndian, &r); err != nil {
			return err
		}
		var err error
		switch r.Encoding {
		case encodingDesktopSize:
			isResized, err = true, c.resize(int(r.Width), int(r.Height))
		case encodingRaw:
			err = c.raw(image.Rect(int(r.X), int(r.Y), int(r.X)+int(r.Width), int(r.Y)+int(r.Height)))
		default:
			err = fmt.Errorf("the server sends the encoding %d, which it was not asked for", r.Encoding)
		}
		if err != nil {
			return err
		}
	}
	if c.missing > 0 { // after a change of the size, or a server that sends a part at a time
		return c.again(isResized, head.Count)
	}
	return nil
}

// again asks for the screen once more, after an update that changed its size or had nothing: such an update answers the
// request that was made before.
func (c *client) again(isResized bool, rectangles uint16) error {
	if isResized || rectangles == 0 {
		return c.request()
	}
	return nil
}

// raw reads one rectangle.
func (c *client) raw(r image.Rectangle) error {
	if !r.In(c.screen.Rect) {
		return fmt.Errorf("the server sends %v, outside of the screen %v", r, c.screen.Rect)
	}
	line := make([]byte, 4*r.Dx())
	for y := r.Min.Y; y < r.Max.Y; y++ {
		if _, err := io.ReadFull(c.r, line); err != nil {
			return err
		}
		at := c.screen.Pix[c.screen.PixOffset(r.Min.X, y):]
		for i := 0; i < len(line); i += 4 {
			if at[i+3] == 0 {
				c.missing--
			}
			at[i], at[i+1], at[i+2], at[i+3] = line[i+2], line[i+1], line[i], 255
		}
	}
	return nil
}
