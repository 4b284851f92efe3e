package libvirtd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Of libvirt's RPC (virnetprotocol.x, remote_protocol.x, qemu_protocol.x).
const (
	remoteProgram = 0x20008086
	qemuProgram   = 0x20008087

	headerSize = 6 * 4 // program, version, procedure, kind, serial and status, without the length before them

	kindReply    = 1
	kindEvent    = 2
	statusOK     = 0
	statusFailed = 1

	procAuthList       = 66
	procRegister       = 316
	procLifecycle      = 318
	procReboot         = 319
	procAgentLifecycle = 348
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
		{remoteProgram, 210}:          noResult, // domain inject NMI
		{remoteProgram, 212}:          reflect.TypeFor[golibvirt.DomainGetStateRet](),
		{remoteProgram, 234}:          noResult, // domain destroy flags
		{remoteProgram, 245}:          noResult, // domain reset
		{remoteProgram, 251}:          noResult, // domain block resize
		{remoteProgram, 258}:          noResult, // domain shutdown flags
		{remoteProgram, 273}:          reflect.TypeFor[golibvirt.ConnectListAllDomainsRet](),
		{remoteProgram, procRegister}: reflect.TypeFor[golibvirt.ConnectDomainEventCallbackRegisterAnyRet](),
		{remoteProgram, 317}:          noResult, // domain event callback deregister, at the end of a connection
		{remoteProgram, 342}:          reflect.TypeFor[golibvirt.ConnectGetDomainCapabilitiesRet](),
		{remoteProgram, 344}:          reflect.TypeFor[golibvirt.ConnectGetAllDomainStatsRet](),
		{qemuProgram, 3}:              reflect.TypeFor[golibvirt.QEMUDomainAgentCommandRet](),
	}
	events = map[procedure]reflect.Type{
		{remoteProgram, procLifecycle}:      reflect.TypeFor[golibvirt.DomainEventCallbackLifecycleMsg](),
		{remoteProgram, procReboot}:         reflect.TypeFor[golibvirt.DomainEventCallbackRebootMsg](),
		{remoteProgram, procAgentLifecycle}: reflect.TypeFor[golibvirt.DomainEventCallbackAgentLifecycleMsg](),
	}
	// remoteError is how the library reads the head of remote_error.
	remoteError = reflect.TypeFor[struct {
		Code, Domain, Present uint32
		Message               string
		Level                 uint32
	}]()
	typedParam = reflect.TypeFor[golibvirt.TypedParam]()
)

var errShort = errors.New("a length exceeds the rest of the message")

// checkMessage returns an error for a message, without its length word, that the
// library would not read as what it is, or in which a count or the length of a
// string is more than the message holds. The library takes up to gigabytes at
// such a word, and reads events where no panic of its can be recovered.
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
	rest := body(message[headerSize:])
	if err := rest.skip(layout); err != nil {
		return fmt.Errorf("%w of procedure %d: %w", errFraming, p.number, err)
	}
	return nil
}

// body is what is left of a message, in XDR (RFC 4506).
type body []byte

// skip goes past one value of type t.
func (b *body) skip(t reflect.Type) error {
	if t == typedParam {
		return b.skipTypedParam()
	}
	switch t.Kind() { //nolint:exhaustive // the rest takes a word
	case reflect.Int64, reflect.Uint64, reflect.Float64:
		return b.drop(8)
	case reflect.String:
		n, err := b.count()
		if err != nil {
			return err
		}
		return b.drop((n + 3) &^ 3)
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return b.drop((t.Len() + 3) &^ 3)
		}
		return b.skipMany(t.Elem(), t.Len())
	case reflect.Slice:
		n, err := b.count()
		if err != nil {
			return err
		}
		return b.skipMany(t.Elem(), n)
	case reflect.Struct:
		for field := range t.Fields() {
			if err := b.skip(field.Type); err != nil {
				return err
			}
		}
		return nil
	default:
		return b.drop(4)
	}
}

func (b *body) skipMany(t reflect.Type, n int) error {
	for range n {
		if err := b.skip(t); err != nil {
			return err
		}
	}
	return nil
}

// skipTypedParam goes past a name, a type (virTypedParameterType) and a value of that type.
func (b *body) skipTypedParam() error {
	if err := b.skip(reflect.TypeFor[string]()); err != nil {
		return err
	}
	kind := *b
	if err := b.drop(4); err != nil {
		return err
	}
	switch kind := binary.BigEndian.Uint32(kind); kind {
	case 1, 2, 6: // int, unsigned int, boolean
		return b.drop(4)
	case 3, 4, 5: // long long, unsigned long long, double
		return b.drop(8)
	case 7:
		return b.skip(reflect.TypeFor[string]())
	default:
		return fmt.Errorf("a parameter of type %d", kind)
	}
}

// count reads how many bytes or elements follow. Each takes a byte at least.
func (b *body) count() (int, error) {
	head := *b
	if err := b.drop(4); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(head)
	if uint64(n) > uint64(len(*b)) {
		return 0, errShort
	}
	return int(n), nil
}

func (b *body) drop(n int) error {
	if n > len(*b) {
		return errShort
	}
	*b = (*b)[n:]
	return nil
}
