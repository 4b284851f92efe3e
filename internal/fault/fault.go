package fault

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Class says who can correct a failure.
type Class uint8

// The classes.
const (
	Internal  Class = iota // a bug of ours, and the class of every unclassified error: retried, counted, logged
	Transient              // may pass by itself: retried with backoff
	User                   // the spec, or what it names, is wrong: told in a condition and an Event
)

// Error is an error with its class and its reason.
type Error struct {
	Class  Class
	Reason v1alpha1.Reason
	Err    error
}

// Error returns the message of the error inside.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error inside.
func (e *Error) Unwrap() error { return e.Err }

// NewUser marks err as one that the user can correct. Without an error it is nil.
func NewUser(reason v1alpha1.Reason, err error) error { return mark(User, reason, err) }

// NewTransient marks err as one that may pass by itself. Without an error it is nil.
func NewTransient(reason v1alpha1.Reason, err error) error { return mark(Transient, reason, err) }

func mark(class Class, reason v1alpha1.Reason, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Class: class, Reason: reason, Err: err}
}

// Doing adds to an error what was being done, as fmt.Sprintf writes it. Without an error it is nil.
func Doing(err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(what, args...), err)
}

// ClassOf returns the class of the outermost Error in err's tree, Internal if there is none.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return Internal
}

// ReasonOf returns the reason of the outermost Error in err's tree, InternalError if there is none.
func ReasonOf(err error) v1alpha1.Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return v1alpha1.ReasonInternalError
}

// Printable makes what others say fit for a condition: one line, nothing that a terminal obeys or hides, and limit bytes at
// most, with a mark behind what is cut.
func Printable(text string, limit int) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
