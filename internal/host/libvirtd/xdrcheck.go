package libvirtd

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Of libvirt's RPC (virnetprotocol.x, remote_protocol.x).
const (
	remoteProgram = 0x20008086

	headerSize = 6 * 4 // program, version, procedure, kind, serial and status, without the length before them

	kindReply    = 1
	kindEvent    = 2
	statusOK     = 0
	statusFailed = 1

	procAuthList       = 66
	procRegister       = 316
	procLifecycle      = 318
	procReboot         = 319
	procDeviceRemoved  = 333
	procAgentLifecycle = 348
	procRemovalFailed  = 367
)

type procedure struct{ program, number uint32 }

// What may be sent to us: replies to the calls that this package makes, which a test reads from its source, and the
// events that it subscribes to.
var (
	noResult = reflect.TypeFor[struct{}]()
	replies  = map[procedure]reflect.Type{
		{remoteProgram, 1}:            noResult, // connect open
		{remoteProgram, 4}:            reflect.TypeFor[golibvirt.ConnectGetVersionRet](),
		{remoteProgram, 6}:            reflect.TypeFor[golibvirt.NodeGetInfoRet](),
		{remoteProgram, 7}:            reflect.TypeFor[golibvirt.ConnectGetCapabilitiesRet](),
		{remoteProgram, 10}:           reflect.TypeFor[golibvirt.DomainCreateXMLRet](),
		{remoteProgram, 14}:           reflect.TypeFor[golibvirt.DomainGetXMLDescRet](),
		{remoteProgram, 23}:           reflect.TypeFor[golibvirt.DomainLookupByNameRet](),
		{remoteProgram, 24}:           reflect.TypeFor[golibvirt.DomainLookupByUUIDRet](),
		{remoteProgram, 28}:           noResult, // domain resume
		{remoteProgram, 34}:           noResult, // domain suspend
		{remoteProgram, procAuthList}: reflect.TypeFor[golibvirt.AuthListRet](),
		{remoteProgram, 70}:           reflect.TypeFor[golibvirt.AuthPolkitRet](),
		{remoteProgram, 157}:          reflect.TypeFor[golibvirt.ConnectGetLibVersionRet](),
		{remoteProgram, 160}:          noResult, // domain attach device flags
		{remoteProgram, 164}:          noResult, // domain abort job
		{remoteProgram, 174}:          noResult, // domain update device flags
		{remoteProgram, 210}:          noResult, // domain inject NMI
		{remoteProgram, 212}:          reflect.TypeFor[golibvirt.DomainGetStateRet](),
		{remoteProgram, 234}:          noResult, // domain destroy flags
		{remoteProgram, 245}:          noResult, // domain reset
		{remoteProgram, 251}:          noResult, // domain block resize
		{remoteProgram, 252}:          noResult, // domain set block I/O tune
		{remoteProgram, 258}:          noResult, // domain shutdown flags
		{remoteProgram, 264}:          noResult, // domain set metadata
		{remoteProgram, 273}:          reflect.TypeFor[golibvirt.ConnectListAllDomainsRet](),
		{remoteProgram, 298}:          reflect.TypeFor[golibvirt.DomainGetJobStatsRet](),
		{remoteProgram, procRegister}: reflect.TypeFor[golibvirt.ConnectDomainEventCallbackRegisterAnyRet](),
		{remoteProgram, 317}:          noResult, // domain event callback deregister, at the end of a connection
		{remoteProgram, 342}:          reflect.TypeFor[golibvirt.ConnectGetDomainCapabilitiesRet](),
		{remoteProgram, 344}:          reflect.TypeFor[golibvirt.ConnectGetAllDomainStatsRet](),
		{remoteProgram, 392}:          noResult, // domain detach device alias
		{remoteProgram, 421}:          noResult, // domain backup begin
	}
	events = map[procedure]reflect.Type{
		{remoteProgram, procLifecycle}:      reflect.TypeFor[golibvirt.DomainEventCallbackLifecycleMsg](),
		{remoteProgram, procReboot}:         reflect.TypeFor[golibvirt.DomainEventCallbackRebootMsg](),
		{remoteProgram, procDeviceRemoved}:  reflect.TypeFor[golibvirt.DomainEventCallbackDeviceRemovedMsg](),
		{remoteProgram, procAgentLifecycle}: reflect.TypeFor[golibvirt.DomainEventCallbackAgentLifecycleMsg](),
		{remoteProgram, procRemovalFailed}:  reflect.TypeFor[golibvirt.DomainEventCallbackDeviceRemovalFailedMsg](),
	}
	// remoteError is how the library reads the head of remote_error.
	remoteError = reflect.TypeFor[struct {
		Code, Domain, Present uint32
		Message               string
		Level                 uint32
	}]()
	typedParam = reflect.TypeFor[golibvirt.TypedParam]()
	// typedValues are by virTypedParameterType: int, unsigned int, long long, unsigned long long, double, boolean, string.
	typedValues = map[uint32]reflect.Type{
		1: reflect.TypeFor[int32](), 2: reflect.TypeFor[uint32](), 3: reflect.TypeFor[int64](), 4: reflect.TypeFor[uint64](),
		5: reflect.TypeFor[float64](), 6: reflect.TypeFor[int32](), 7: reflect.TypeFor[string](),
	}
)

var errShort = errors.New("a length exceeds the rest of the message")

// checkMessage returns an error for a message, without its length word, that the library would not read as what it is, or in
// which a count or the length of a string is more than the message holds. The library takes up to gigabytes at such a word,
// and reads events where no panic of its can be recovered.
func checkMessage(message []byte) error {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(message[4*i:]) }
	p, kind, status := procedure{word(0), word(2)}, word(3), word(5)
	layout, ok := replies[p]
	switch {
	case kind == kindEvent:
		layout, ok = events[p]
	case kind != kindReply || status > statusFailed:
		ok = false
	case status == statusFailed:
		layout = remoteError
	}
	if !ok {
		return fmt.Errorf("%w: no call or subscription is for procedure %d of program %#x, kind %d, status %d", errFraming, p.number, p.program, kind, status)
	}
	rest := body{left: message[headerSize:]}
	if rest.skip(layout); rest.err != nil {
		return fmt.Errorf("%w of procedure %d: %w", errFraming, p.number, rest.err)
	}
	return nil
}

// body is a message's, in XDR (RFC 4506), and why it is malformed: what is read after that is nothing.
type body struct {
	left []byte
	err  error
}

// skip goes past one value of type t.
func (b *body) skip(t reflect.Type) {
	switch t.Kind() { //nolint:exhaustive // the rest takes a word
	case reflect.Int64, reflect.Uint64, reflect.Float64:
		b.drop(8)
	case reflect.String:
		b.drop(padded(int(b.word())))
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			b.drop(padded(t.Len()))
			return
		}
		b.skipMany(t.Elem(), t.Len())
	case reflect.Slice:
		b.skipMany(t.Elem(), int(b.word()))
	case reflect.Struct:
		if t == typedParam {
			b.skipTypedParam()
			return
		}
		for field := range t.Fields() {
			b.skip(field.Type)
		}
	default:
		b.drop(4)
	}
}

// skipMany ends with the message: each value takes a word at least, whatever their count is said to be.
func (b *body) skipMany(t reflect.Type, n int) {
	for i := 0; i < n && b.err == nil; i++ {
		b.skip(t)
	}
}

// skipTypedParam goes past a name, a type and a value of that type.
func (b *body) skipTypedParam() {
	b.skip(reflect.TypeFor[string]())
	kind := b.word()
	if t, ok := typedValues[kind]; ok {
		b.skip(t)
		return
	}
	b.fail(fmt.Errorf("a parameter of type %d", kind))
}

// word reads a number, 0 if there is none.
func (b *body) word() uint32 {
	head := b.left
	if b.drop(4); b.err != nil {
		return 0
	}
	return binary.BigEndian.Uint32(head)
}

func (b *body) drop(n int) {
	if n > len(b.left) {
		b.fail(errShort)
		return
	}
	b.left = b.left[n:]
}

func (b *body) fail(why error) { b.left, b.err = nil, cmp.Or(b.err, why) }

// padded is what n bytes take, in whole words.
func padded(n int) int { return (n + 3) &^ 3 }
