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

// maxErrorText is how much of libvirt's message is passed on, in bytes: it may hold QEMU's whole output.
const maxErrorText = 1024

// isCode tells whether err is an answer of libvirt's with this number.
func isCode(err error, number golibvirt.ErrorNumber) bool {
	e, ok := errors.AsType[golibvirt.Error](err)
	return ok && golibvirt.ErrorNumber(e.Code) == number //nolint:gosec // a small number
}

func isNoDomain(err error) bool { return isCode(err, golibvirt.ErrNoDomain) }

// classify sorts an error of a call. What is no answer of libvirt's was classified by callPool.call.
func classify(err error) error {
	e, ok := errors.AsType[golibvirt.Error](err)
	if !ok {
		return err
	}
	err = fmt.Errorf("libvirt: %s (error %d)", sanitize(e.Message), e.Code)
	switch golibvirt.ErrorNumber(e.Code) { //nolint:exhaustive,gosec // the rest may pass; a small number
	case golibvirt.ErrNoDomain:
		return fault.NewTransient(v1alpha1.ReasonNotRunning, err)
	case golibvirt.ErrXMLError, golibvirt.ErrXMLDetail, golibvirt.ErrXMLInvalidSchema, golibvirt.ErrConfigUnsupported,
		golibvirt.ErrInvalidArg, golibvirt.ErrArgumentUnsupported:
		return fault.NewUser(v1alpha1.ReasonLibvirtRefused, err)
	default:
		return fault.NewTransient(v1alpha1.ReasonLibvirtRefused, err)
	}
}

// sanitize makes text fit for a condition: one line, nothing that a terminal obeys or hides, not too long.
func sanitize(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), " ")
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	return strings.ToValidUTF8(text, "")
}
