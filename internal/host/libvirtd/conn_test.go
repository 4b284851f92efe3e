package libvirtd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// xdr is a message's words: numbers as they are, text padded to whole words.
func xdr(parts ...any) (b []byte) {
	for _, part := range parts {
		switch part := part.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(b, part)
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(part))
		case string:
			b = append(b, part...)
			b = append(b, make([]byte, (4-len(part)%4)%4)...)
		}
	}
	return b
}

func TestConnPassesOnlyWellFormedMessages(t *testing.T) {
	const (
		uuid    = "0123456789abcdef"
		getXML  = 14
		listAll = 273
		stats   = 344
		aGiB    = 1 << 30
	)
	reply := func(procedure int) []byte { return xdr(remoteProgram, 1, procedure, kindReply, 1, statusOK) }
	event := func(procedure int) []byte { return xdr(remoteProgram, 1, procedure, kindEvent, 0, statusOK) }
	failed := func(procedure int) []byte { return xdr(remoteProgram, 1, procedure, kindReply, 1, statusFailed) }
	for name, tc := range map[string]struct {
		head, body []byte
		refused    string
	}{
		"no domains":                          {reply(listAll), xdr(0, 0), ""},
		"two domains":                         {reply(listAll), xdr(2, 3, "abc", uuid, 1, 5, "defgh", uuid, 2, 2), ""},
		"a third that is not there":           {reply(listAll), xdr(3, 3, "abc", uuid, 1, 5, "defgh", uuid, 2, 2), "exceeds the rest"},
		"more domains than memory":            {reply(listAll), xdr(aGiB, 0), "exceeds the rest"},
		"XML":                                 {reply(getXML), xdr(9, "<domain/>"), ""},
		"XML of a GiB":                        {reply(getXML), xdr(aGiB, "<domain/>"), "exceeds the rest"},
		"XML without its padding":             {reply(getXML), xdr(9, "<domain/>")[:4+9], "exceeds the rest"},
		"no XML at all":                       {reply(getXML), nil, "exceeds the rest"},
		"numbers of all types":                {reply(stats), xdr(1, 1, "a", uuid, 1, 7, 1, "a", 1, 0, 1, "b", 2, 0, 1, "c", 3, 0, 0, 1, "d", 4, 0, 0, 1, "e", 5, 0, 0, 1, "f", 6, 0, 1, "g", 7, 2, "hi"), ""},
		"a number of no type":                 {reply(stats), xdr(1, 1, "a", uuid, 1, 1, 1, "a", 8, 0), "type 8"},
		"a number that is cut":                {reply(stats), xdr(1, 1, "a", uuid, 1, 1, 1, "a", 4, 0), "exceeds the rest"},
		"a text among numbers of a GiB":       {reply(stats), xdr(1, 1, "a", uuid, 1, 1, 1, "a", 7, aGiB), "exceeds the rest"},
		"a model of 32 letters, a word each":  {reply(6), make([]byte, 32*4+8+7*4), ""},
		"an error":                            {failed(getXML), xdr(42, 10, 1, 4, "gone", 2), ""},
		"an error with a text of a GiB":       {failed(getXML), xdr(42, 10, 1, aGiB, "gone", 2), "exceeds the rest"},
		"an end":                              {event(procLifecycle), xdr(1, 3, "abc", uuid, -1, 5, 0), ""},
		"an end of a domain with a long name": {event(procLifecycle), xdr(1, aGiB, "abc", uuid, -1, 5, 0), "exceeds the rest"},
		"a guest agent":                       {event(procAgentLifecycle), xdr(1, 3, "abc", uuid, 1, 1, 1), ""},
		"an event nobody asked for":           {event(320), xdr(1), "no call or subscription"},
		"an event as a reply":                 {reply(procLifecycle), xdr(1, 3, "abc", uuid, -1, 5, 0), "no call or subscription"},
		"an event as an error":                {failed(procLifecycle), xdr(42, 10, 1, 4, "gone", 2), "no call or subscription"},
		"a reply as an event":                 {event(getXML), xdr(9, "<domain/>"), "no call or subscription"},
		"a reply nobody asked for":            {reply(5), xdr(1, "a"), "no call or subscription"},
		"a stream":                            {xdr(remoteProgram, 1, getXML, 3, 1, 2), xdr(9, "<domain/>"), "no call or subscription"},
		"half a reply":                        {xdr(remoteProgram, 1, getXML, kindReply, 1, 2), xdr(1, 1, 1, 1, aGiB), "no call or subscription"},
		"another program":                     {xdr(0x6b656570, 1, 1, kindEvent, 0, 0), nil, "no call or subscription"},
		"a guest agent's answer":              {xdr(qemuProgram, 1, 3, kindReply, 1, statusOK), xdr(1, 2, "{}"), "no call or subscription"},
		"QEMU's event nobody asked for":       {xdr(qemuProgram, 1, 6, kindEvent, 0, statusOK), xdr(1, 3, "abc", uuid, 1), "no call or subscription"},
		"more than the protocol has":          {make([]byte, maxMessage-3), nil, "malformed"},
		"less than the protocol has":          {make([]byte, headerSize-1), nil, "malformed"},
		"a header and nothing behind it":      {reply(1), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sent := append(tc.head, tc.body...)
			sent = append(binary.BigEndian.AppendUint32(nil, uint32(4+len(sent))), sent...)
			ours, theirs := net.Pipe()
			go func() {
				_, _ = theirs.Write(sent)
				theirs.Close()
			}()
			w := newCheckedConn(ours)
			got, err := io.ReadAll(w)
			if err != nil {
				t.Fatal(err)
			}
			<-w.ended.Done()
			if n, err := w.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %d bytes, %v", n, err)
			}
			if tc.refused == "" {
				if string(got) != string(sent) || !errors.Is(context.Cause(w.ended), io.EOF) {
					t.Errorf("handed on %d bytes of %d, then %v", len(got), len(sent), context.Cause(w.ended))
				}
				return
			}
			if len(got) != 0 || !errors.Is(context.Cause(w.ended), errFraming) || !strings.Contains(context.Cause(w.ended).Error(), tc.refused) {
				t.Errorf("handed on %d bytes, then %v", len(got), context.Cause(w.ended))
			}
		})
	}
}
