package guest

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/shim/client"
)

// session is one client with its command.
type session struct {
	sessions *Sessions
	conn     *os.File
	request  client.Request
	files    []*os.File // standard input, output, error
	began    time.Time
	active   atomic.Int64 // when something last moved, in nanoseconds
	ended    chan struct{}
	once     sync.Once
	stream   atomic.Pointer[guestlink.Stream] // nil before it has one
}

func (n *session) touch() { n.active.Store(time.Now().UnixNano()) }

// silence is for how long nothing has moved.
func (n *session) silence() time.Duration { return time.Since(time.Unix(0, n.active.Load())) }

func (n *session) isOver() bool {
	select {
	case <-n.ended:
		return true
	default:
		return false
	}
}

// begin joins the client with its stream. It returns nil once the guest program has it, or the session has ended.
func (n *session) begin(stream *guestlink.Stream) *answer {
	n.stream.Store(stream)
	if n.isOver() { // hung up while the stream was opened
		stream.Reset()
		return nil
	}
	if !n.request.Detached {
		go n.copyInput(stream)
	}
	select {
	case <-n.ended:
	case <-stream.Heard():
	case <-time.After(openTimeout):
		return n.sessions.noProgram()
	}
	return nil
}

// copyInput copies standard input to the guest.
func (n *session) copyInput(stream *guestlink.Stream) {
	defer stream.CloseStdin()
	for {
		var buf []byte
		count := 0
		err := shimproto.Read(n.files[guestlink.Stdin], func(fd int) (err error) {
			buf, _ = buffers.Get().([]byte)
			if count, err = unix.Read(fd, buf); err != nil {
				buffers.Put(buf) //nolint:staticcheck // a slice's header is small change
			}
			return err
		})
		if err != nil {
			return
		}
		n.touch()
		if count > 0 {
			err = stream.Write(guestlink.Stdin, buf[:count])
		}
		buffers.Put(buf) //nolint:staticcheck // likewise
		if count == 0 || err != nil {
			return
		}
	}
}

// buffers are for input: a client that types nothing holds none.
var buffers = sync.Pool{New: func() any { return make([]byte, 16<<10) }}

func (n *session) resize(size guestlink.Size) {
	if stream := n.stream.Load(); stream != nil {
		n.touch()
		stream.Resize(size)
	}
}

// Take writes what the command has written. It blocks as long as the client's reader does.
func (n *session) Take(channel int, b []byte) error {
	n.touch()
	_, err := n.files[channel].Write(b)
	n.touch()
	if stream := n.stream.Load(); stream != nil && errors.Is(err, unix.EPIPE) {
		stream.Signal(byte(unix.SIGPIPE)) // as the kernel would
	}
	return err
}

// Resize and Signal are the guest's side's alone.
func (*session) Resize(guestlink.Size) {}

// Signal is the guest's side's alone.
func (*session) Signal(int) {}

// losses say why a command was hung up.
var losses = map[error]string{
	guestlink.ErrRestarted: "the guest rebooted, or its guest program was started again",
	guestlink.ErrBroken:    "the guest broke the protocol",
	guestlink.ErrReset:     "the guest program hung the command up",
}

// Ended is the end of the stream.
func (n *session) Ended(code int, err error) {
	switch {
	case err == nil:
		n.end(code, "")
	case errors.Is(err, guestlink.ErrClosed): // by QEMU, which has ended; why, the agent is to tell
		time.AfterFunc(endTimeout, func() { n.end(client.CodeLost, "the guest has ended") })
	default:
		n.end(client.CodeLost, losses[err])
	}
}

// end hangs the command up, if it has not ended, and tells the client the exit code. The client's descriptors are closed
// by then: the runtime waits for that, too.
func (n *session) end(code int, message string) {
	n.once.Do(func() {
		close(n.ended)
		if stream := n.stream.Load(); stream != nil {
			stream.Reset()
		}
		shimproto.CloseAll(n.files)
		n.sessions.leave(n)
		_ = n.conn.SetDeadline(time.Now().Add(endTimeout)) // the client hangs up as soon as it has read this
		_, _ = n.conn.Write(client.Answer(code, message))
	})
}
