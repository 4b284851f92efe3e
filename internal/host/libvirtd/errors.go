package libvirtd

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// maxMessageText is how much of libvirt's message is passed on, in bytes: it may hold QEMU's whole output.
const maxMessageText = 1024

func isAbsent(err error) bool {
	e, ok := errors.AsType[golibvirt.Error](err)
	return ok && golibvirt.ErrorNumber(e.Code) == golibvirt.ErrNoDomain //nolint:gosec // a small number
}

// classify sorts an error of a call. What is no answer of libvirt's has been classified where the answer stayed away.
func classify(err error) error {
	e, ok := errors.AsType[golibvirt.Error](err)
	if !ok {
		return err
	}
	err = fmt.Errorf("libvirt: %s (error %d)", bounded(e.Message), e.Code)
	switch golibvirt.ErrorNumber(e.Code) { //nolint:exhaustive,gosec // the rest may pass; a small number
	case golibvirt.ErrNoDomain:
		return fault.ByTime(v1alpha1.ReasonNotRunning, err)
	case golibvirt.ErrAgentUnresponsive, golibvirt.ErrAgentUnsynced, golibvirt.ErrAgentCommandTimeout, golibvirt.ErrAgentCommandFailed:
		return fault.ByTime(v1alpha1.ReasonGuestAgentNotConnected, err)
	case golibvirt.ErrXMLError, golibvirt.ErrXMLDetail, golibvirt.ErrXMLInvalidSchema, golibvirt.ErrConfigUnsupported,
		golibvirt.ErrInvalidArg, golibvirt.ErrArgumentUnsupported:
		return fault.ByUser(v1alpha1.ReasonLibvirtRefused, err)
	default:
		return fault.ByTime(v1alpha1.ReasonLibvirtRefused, err)
	}
}

// bounded makes text fit for a condition: one line, no control characters, not too long.
func bounded(text string) string {
	text = strings.Join(strings.FieldsFunc(text, unicode.IsControl), " ")
	if len(text) > maxMessageText {
		text = text[:maxMessageText] + "…"
	}
	return strings.ToValidUTF8(text, "")
}
