package libvirtd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestEventMonitor(t *testing.T) {
	type at = map[string]int32
	list := func(c *eventMonitor, now at) { c.endList(c.beginList(), now) }
	for name, tc := range map[string]struct {
		happens func(*eventMonitor)
		missed  string
	}{
		"what was in the first list is no news": {func(c *eventMonitor) { list(c, at{"a": 1}) }, ""},
		"a domain appeared with an event":       {func(c *eventMonitor) { list(c, at{}); c.note("a"); list(c, at{"a": 1}) }, ""},
		"a domain appeared in silence":          {func(c *eventMonitor) { list(c, at{}); list(c, at{"a": 1}) }, "a"},
		"a domain went in silence":              {func(c *eventMonitor) { list(c, at{"a": 1, "b": 2}); list(c, at{"b": 2}) }, "a"},
		"a domain lives anew in silence":        {func(c *eventMonitor) { list(c, at{"a": 1}); list(c, at{"a": 2}) }, "a"},
		"an event is late":                      {func(c *eventMonitor) { list(c, at{}); list(c, at{"a": 1}); c.note("a") }, ""},
		"an event comes while libvirtd lists": {func(c *eventMonitor) {
			list(c, at{})
			noted := c.beginList()
			c.note("a")
			c.endList(noted, at{})
			list(c, at{"a": 1})
		}, ""},
		"a new connection forgets": {func(c *eventMonitor) { list(c, at{}); list(c, at{"a": 1}); c.reset() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := &eventMonitor{}
			c.reset()
			tc.happens(c)
			if first := c.missed(); first != "" {
				t.Errorf("at the first call: %s", first)
			}
			if got := c.missed(); got != tc.missed {
				t.Errorf("missed: %q, want %q", got, tc.missed)
			}
		})
	}
}

func TestExitLogIsBounded(t *testing.T) {
	var s exitLog
	for i := range 3 * maxExits {
		s.lifecycle(string(binary.BigEndian.AppendUint32(nil, uint32(i))), golibvirt.DomainEventStopped, 0, time.Now())
	}
	if len(s.last) != maxExits {
		t.Errorf("%d ends remembered", len(s.last))
	}
}

func TestANewLifeForgetsTheLastEnd(t *testing.T) {
	var c Client
	c.exits.lifecycle("a", golibvirt.DomainEventStopped, 0, time.Now())
	c.exits.lifecycle("a", golibvirt.DomainEventStarted, 0, time.Now())
	if stop, ok := c.LastExit("a"); ok {
		t.Errorf("%+v", stop)
	}
}

// TestCausesOfEnds: of up to three events of one end the one that says most counts.
func TestCausesOfEnds(t *testing.T) {
	crashed := func(d golibvirt.DomainEventCrashedDetailType) ending {
		return ending{golibvirt.DomainEventCrashed, int32(d)}
	}
	shutdown := func(d golibvirt.DomainEventShutdownDetailType) ending {
		return ending{golibvirt.DomainEventShutdown, int32(d)}
	}
	stopped := func(d golibvirt.DomainEventStoppedDetailType) ending {
		return ending{golibvirt.DomainEventStopped, int32(d)}
	}
	for name, tc := range map[string]struct {
		events []ending
		want   Cause
	}{
		"the guest powers off":          {[]ending{shutdown(golibvirt.DomainEventShutdownGuest), stopped(golibvirt.DomainEventStoppedShutdown)}, CausePoweredOff},
		"an older QEMU does not say so": {[]ending{shutdown(golibvirt.DomainEventShutdownFinished), stopped(golibvirt.DomainEventStoppedShutdown)}, CausePoweredOff},
		"a signal":                      {[]ending{shutdown(golibvirt.DomainEventShutdownHost), stopped(golibvirt.DomainEventStoppedShutdown)}, CauseSignalled},
		"a signal of libvirtd's":        {[]ending{shutdown(golibvirt.DomainEventShutdownHost), stopped(golibvirt.DomainEventStoppedDestroyed)}, CauseDestroyed},
		"a panic": {
			[]ending{crashed(golibvirt.DomainEventCrashedPanicked), shutdown(golibvirt.DomainEventShutdownHost), stopped(golibvirt.DomainEventStoppedDestroyed)}, CausePanicked,
		},
		"QEMU crashes":             {[]ending{stopped(golibvirt.DomainEventStoppedCrashed)}, CauseFailed},
		"QEMU does not come up":    {[]ending{stopped(golibvirt.DomainEventStoppedFailed)}, CauseFailed},
		"it is migrated":           {[]ending{stopped(golibvirt.DomainEventStoppedMigrated)}, CauseMoved},
		"it is saved":              {[]ending{stopped(golibvirt.DomainEventStoppedSaved)}, CauseMoved},
		"an end that has no cause": {[]ending{stopped(golibvirt.DomainEventStoppedFromSnapshot)}, CauseUnknown},
		"it is defined no more":    {[]ending{stopped(golibvirt.DomainEventStoppedShutdown), {golibvirt.DomainEventUndefined, 0}}, CauseUnknown},
		"what says nothing of an end": {
			[]ending{stopped(golibvirt.DomainEventStoppedDestroyed), {golibvirt.DomainEventPmsuspended, 0}}, CauseDestroyed,
		},
	} {
		var c Client
		for _, e := range tc.events {
			c.exits.lifecycle("a", e.event, e.detail, time.Now())
		}
		if exit, ok := c.LastExit("a"); exit.Cause != tc.want || ok != (tc.want != CauseUnknown) {
			t.Errorf("%s: %+v, want %q", name, exit, tc.want)
		}
	}
}

func TestAPanicThatWasNoneIsForgotten(t *testing.T) {
	var c Client
	c.exits.lifecycle("a", golibvirt.DomainEventCrashed, int32(golibvirt.DomainEventCrashedPanicked), time.Now())
	c.exits.clearPanic("a")
	if stop, ok := c.LastExit("a"); ok {
		t.Errorf("a guest that lives panicked: %+v", stop)
	}
	c.exits.lifecycle("a", golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedShutdown), time.Now())
	c.exits.clearPanic("a")
	if stop, ok := c.LastExit("a"); !ok || stop.Cause != CausePoweredOff {
		t.Errorf("its own end was forgotten: %+v", stop)
	}
}

func TestParseExit(t *testing.T) {
	const (
		start   = "2026-11-23 21:30:05.882+0000: starting up libvirt version: 9.0.0, kernel: 6.18\nLC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=ns_a\n"
		at      = "2026-11-23 21:31:12.829+0000: shutting down, reason="
		byHost  = "2026-11-23T21:31:10.824916Z qemu-system-x86_64: terminating on signal 15 from pid 1 (/sbin/init)\n"
		byAgent = "2026-11-23T21:31:10.824916Z qemu-system-x86_64: terminating on signal 15 from pid 12771 (/berth-agent)\n"
		byVirt  = "2026-11-23T21:31:10.824916Z qemu-system-x86_64: terminating on signal 15 from pid 14888 (/usr/sbin/libvirtd)\n"
	)
	end := time.Date(2026, 11, 23, 21, 31, 12, 829_000_000, time.UTC)
	for name, tc := range map[string]struct {
		log  string
		want Exit
	}{
		"nothing":                                {"", Exit{}},
		"it still runs":                          {start, Exit{}},
		"it lives again":                         {start + at + "crashed\n" + start, Exit{}},
		"it powered off":                         {start + byVirt + at + "shutdown\n", Exit{CausePoweredOff, end, "terminating on signal 15 from pid 14888 (/usr/sbin/libvirtd)"}},
		"an agent ended it":                      {start + byAgent + at + "shutdown\n", Exit{CauseTerminated, end, "terminating on signal 15 from pid 12771 (/berth-agent)"}},
		"the host ended it":                      {start + byHost + at + "shutdown\n", Exit{CauseSignalled, end, "terminating on signal 15 from pid 1 (/sbin/init)"}},
		"the life before was ended":              {start + byHost + at + "shutdown\n" + start + at + "shutdown\n", Exit{CausePoweredOff, end, ""}},
		"it was destroyed":                       {start + byVirt + at + "destroyed\n", Exit{CauseDestroyed, end, "terminating on signal 15 from pid 14888 (/usr/sbin/libvirtd)"}},
		"QEMU crashed":                           {start + at + "crashed\n", Exit{CauseFailed, end, ""}},
		"QEMU did not come up":                   {start + "2026-11-23T21:31:10.824916Z qemu-system-x86_64: no such disk\n" + at + "failed\n", Exit{CauseFailed, end, "no such disk"}},
		"a reason of another release":            {start + at + "boredom\n", Exit{Time: end}},
		"a line that only looks alike":           {start + "xxxx-11-23 21:31:12.829+0000: shutting down, reason=crashed\n", Exit{Message: "xxxx-11-23 21:31:12.829+0000: shutting down, reason=crashed"}},
		"the guest agent's port is no news":      {start + "char device redirected to /dev/pts/1 (label charchannel0)\n" + at + "crashed\n", Exit{CauseFailed, end, ""}},
		"a library of QEMU's aborted":            {start + "**\nERROR:../util/error.c:57: assertion failed\nBail out!\n" + at + "crashed\n", Exit{CauseFailed, end, "**; ERROR:../util/error.c:57: assertion failed; Bail out!"}},
		"nothing tells why":                      {start + "KVM: entry failed, hardware error 0x0\n", Exit{Message: "KVM: entry failed, hardware error 0x0"}},
		"the log is cut off in the command line": {"disk.qcow2 \\\n-msg timestamp=on\n" + at + "crashed\n", Exit{CauseFailed, end, ""}},
		"a line for a terminal":                  {start + "\x1b[2Jx\u202ey\n" + at + "crashed\n", Exit{CauseFailed, end, "[2Jx y"}},
		"a line too long":                        {start + strings.Repeat("x", 600) + "\n" + at + "crashed\n", Exit{CauseFailed, end, strings.Repeat("x", maxQEMUOutput)}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parseExit(tc.log)); diff != "" {
				t.Errorf("stop (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add("2026-11-23 21:31:12.829+0000: shutting down, reason=crashed\n2026-11-23T21:31:10Z qemu-system-x86_64: x\xff\n")
	f.Fuzz(func(t *testing.T, text string) {
		if stop := parseExit(text); len(stop.Message) > maxQEMUOutput {
			t.Errorf("a message of %d bytes", len(stop.Message))
		}
	})
}

func TestReadStopRefusesPaths(t *testing.T) {
	for _, name := range []string{"", "../x", "a/b", "a\x00"} {
		if _, err := ReadExit("/", name); err == nil {
			t.Errorf("no error for %q", name)
		}
	}
	if stop, err := ReadExit(t.TempDir(), "x"); err != nil || stop.Cause != CauseUnknown {
		t.Errorf("no log: %+v, %v", stop, err)
	}
}

// FuzzConn feeds go-libvirt whatever a daemon might send.
func FuzzConn(f *testing.F) {
	f.Add(xdr(28, remoteProgram, 1, 66, 1, 1, 0))
	f.Add(xdr(0))
	f.Add(xdr(0xffffffff, remoteProgram, 1, 66, 1, 1, 1))
	f.Add(xdr(32, remoteProgram, 1, 318, 2, 0, 0, 1))
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours, theirs := net.Pipe()
		w := newCheckedConn(ours)
		go func() {
			go io.Copy(io.Discard, theirs) //nolint:errcheck // until it is closed
			_, _ = theirs.Write(stream)
			theirs.Close()
		}()
		c := &connection{Libvirt: golibvirt.NewWithDialer(dialer{w}), conn: w}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		// The library can be brought to hang on itself, but nobody waits for it.
		err := c.guarded(ctx, func(l *golibvirt.Libvirt) error { return l.ConnectToURI("test:///default") })
		if err == nil && len(stream) < 2*minMessage {
			t.Error("connected to less than two replies")
		}
		w.close()
		<-w.ended.Done()
	})
}

// noAuth is the answer to how one may authenticate: one way, by nothing.
var noAuth = xdr(1, 0)

func message(procedure, kind, serial uint32, body []byte) []byte {
	return append(xdr(4+headerSize+len(body), remoteProgram, 1, procedure, kind, serial, statusOK), body...)
}

// answer is a daemon: it answers every call that comes with a result, until the connection ends.
func answer(conn net.Conn, result func(procedure uint32) []byte) {
	head := make([]byte, 4+headerSize)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head))-int64(len(head)))
		procedure := binary.BigEndian.Uint32(head[12:])
		_, _ = conn.Write(message(procedure, kindReply, binary.BigEndian.Uint32(head[20:]), result(procedure)))
	}
}

func TestAnAnswerAboutAnotherDomainIsNone(t *testing.T) {
	const (
		asked, other = "0123456789abcdef", "0123456789abcdeg"
		id           = "30313233-3435-3637-3839-616263646566" // asked, as text
	)
	look := func(c *Client) error {
		_, err := c.Domain(t.Context(), id)
		return err
	}
	start := func(c *Client) error {
		return c.explainStartFailure(t.Context(), "qemu", "web", id, golibvirt.Error{Code: uint32(golibvirt.ErrOperationFailed)})
	}
	for name, tc := range map[string]struct {
		name, uuid string
		ask        func(*Client) error
		want       v1alpha1.Reason
	}{
		"the domain with this UUID":        {"web", asked, look, ""},
		"a domain with another UUID":       {"web", other, look, v1alpha1.ReasonLibvirtUnreachable},
		"the domain with this name":        {"web", asked, start, ""},
		"another domain has this name":     {"web", other, start, v1alpha1.ReasonDomainNameTaken},
		"a domain with yet another name":   {"wec", other, start, v1alpha1.ReasonLibvirtUnreachable},
		"the domain, under another's name": {"wec", asked, start, v1alpha1.ReasonLibvirtUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			found := xdr(len(tc.name), tc.name, tc.uuid, 7)
			results := map[uint32][]byte{
				procAuthList: noAuth, 23: found, 24: found,
				212: xdr(int(golibvirt.DomainRunning), 1), 14: xdr(9, "<domain/>"),
			}
			go answer(theirs, func(procedure uint32) []byte { return results[procedure] })
			c := New(Options{}, Watcher{})
			w := newCheckedConn(ours)
			c.queries.current = &connection{Libvirt: golibvirt.NewWithDialer(dialer{w}), conn: w}
			if err := c.queries.current.ConnectToURI("test:///default"); err != nil {
				t.Fatal(err)
			}
			err := tc.ask(c)
			if tc.want == "" && err != nil || tc.want != "" && fault.ReasonOf(err) != tc.want {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestAFullPoolIsLibvirtdsFaultOnlyIfNothingElseHoldsIt(t *testing.T) {
	for holders, want := range map[string]v1alpha1.Reason{"": v1alpha1.ReasonLibvirtUnreachable, "slow QEMUs": v1alpha1.ReasonLibvirtBusy} {
		p := newCallPool("control", holders, time.Millisecond, func(context.Context) (*connection, error) {
			t.Error("it connected without a slot")
			return nil, ErrNotConnected
		})
		for range cap(p.slots) {
			p.slots <- struct{}{}
		}
		err := p.call(t.Context(), func(*golibvirt.Libvirt) error { return nil })
		if fault.ReasonOf(err) != want || fault.ClassOf(err) != fault.Transient || strings.Contains(err.Error(), "start it") == (holders != "") {
			t.Errorf("%s: %v, want %s", fault.ReasonOf(err), err, want)
		}
	}
}

// FuzzEvents has a daemon that answers well, and tells of events whatever comes.
func FuzzEvents(f *testing.F) {
	const callback = 1
	// remote_domain_event_callback_lifecycle_msg: callback, domain (name, UUID, ID), event, detail.
	f.Add(uint32(procLifecycle), xdr(callback, 1, "a", "0123456789abcdef", 7, int(golibvirt.DomainEventStopped), 0))
	f.Add(uint32(procLifecycle), xdr(callback, 0xffffffff))
	f.Add(uint32(320), xdr(0x2c3030df, 0x7d7487b0, 0xcacf4a30)) // an event nobody asked for, of 741 MB
	f.Add(uint32(0), []byte(nil))
	f.Fuzz(func(t *testing.T, procedure uint32, event []byte) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go answer(theirs, func(procedure uint32) []byte {
			if procedure == procAuthList {
				return noAuth
			}
			return xdr(callback) // also the first result of any other call
		})
		w := newCheckedConn(ours)
		c := &connection{Libvirt: golibvirt.NewWithDialer(dialer{w}), conn: w}
		told := 0
		k := New(Options{}, Watcher{Changed: func(string) { told++ }, Resync: func() {}, Connectivity: func(error) {}})
		drained := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := c.guarded(ctx, func(l *golibvirt.Libvirt) error {
			if err := l.ConnectToURI("test:///default"); err != nil {
				return err
			}
			stream, err := l.SubscribeEvents(context.Background(), golibvirt.DomainEventIDLifecycle, nil)
			if err == nil {
				go func() { k.handleEvents(stream); close(drained) }()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = theirs.Write(message(procedure, kindEvent, 0, event))
		w.close()
		<-drained
		if told > 1 {
			t.Errorf("one event was told %d times", told)
		}
	})
}
