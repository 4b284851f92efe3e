package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func invalid(ref Reference, err error) error {
	return fault.NewUser(v1alpha1.ReasonImageInvalid, fmt.Errorf("image %s: %w", ref, err))
}

func notDisk(ref Reference, format string, args ...any) error {
	return fault.NewUser(v1alpha1.ReasonImageNotDisk, fmt.Errorf("image %s: "+format, append([]any{ref}, args...)...))
}

func tooLarge(ref Reference, format string, args ...any) error {
	return fault.NewUser(v1alpha1.ReasonImageTooLarge, fmt.Errorf("image %s: "+format, append([]any{ref}, args...)...))
}

func digestMismatch(ref Reference, what string) error {
	return fault.NewUser(v1alpha1.ReasonImageDigestMismatch,
		fmt.Errorf("image %s: %s is not what its digest says: push the image again; nothing of it was kept", ref, what))
}

func unreachable(ref Reference, err error) error {
	return fault.NewTransient(v1alpha1.ReasonRegistryUnreachable,
		fmt.Errorf("pulling image %s from %s failed, retrying: %w", ref, ref.Registry, err))
}

// laterError is that of a registry that said when to ask again.
type laterError struct {
	error
	after time.Duration
}

func (e laterError) Unwrap() error { return e.error }

// RetryAfter is for how long the registry does not want to be asked again, 0 if it did not say.
func RetryAfter(err error) time.Duration {
	later, _ := errors.AsType[laterError](err)
	return later.after
}

// maxWords bounds what is shown of a registry's own words, in bytes.
const maxWords = 300

// words are what a registry says of its refusal.
type words struct {
	code, text string
}

// readWords reads the body of a refusal, as the distribution specification has it; {} if it is another.
func readWords(body io.Reader) words {
	var said struct {
		Errors []errcode.Error `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(body, 16<<10)).Decode(&said) != nil || len(said.Errors) == 0 {
		return words{}
	}
	return wordsOf(said.Errors[0])
}

func wordsOf(e errcode.Error) words {
	w := words{code: printable(e.Code), text: printable(e.Code)}
	if e.Message != "" {
		w.text = printable(strings.TrimPrefix(e.Code+": "+e.Message, ": "))
	}
	return w
}

// printable is text that may stand in a condition.
func printable(text string) string {
	clean := strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }), " ")
	if len(clean) > maxWords {
		clean = strings.ToValidUTF8(clean[:maxWords], "") + "…"
	}
	return clean
}

// refusal classifies an answer that is no success, to the question for what.
func (r *repository) refusal(what string, status int, said words) error {
	answer := strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
	if said.text != "" {
		answer += ": " + said.text
	}
	answer = r.whose() + answer
	refused := status == http.StatusUnauthorized || status == http.StatusForbidden
	switch {
	case r.talk.tokenServer && !refused, r.redirected():
		return r.later(errors.New(answer))
	case status == http.StatusNotFound && strings.HasPrefix(what, "blobs/"):
		return fault.NewUser(v1alpha1.ReasonImageNotFound,
			fmt.Errorf("image %s: the registry has its manifest, but not its layer %s: push it again (%s)", r.ref, strings.TrimPrefix(what, "blobs/"), answer))
	case status == http.StatusNotFound, status == http.StatusGone:
		return fault.NewUser(v1alpha1.ReasonImageNotFound,
			fmt.Errorf("image %s: the registry has no such image: correct the name, or push it (%s)", r.ref, answer))
	case status == http.StatusUnavailableForLegalReasons:
		return fault.NewUser(v1alpha1.ReasonImageUnauthorized,
			fmt.Errorf("image %s: the registry may not serve it: use another image (%s)", r.ref, answer))
	case refused && len(r.talk.schemes) > 0:
		return fault.NewUser(v1alpha1.ReasonImageUnauthorized, fmt.Errorf(
			"image %s: the registry wants credentials by %s alone: have its administrator offer Basic or Bearer (%s)", r.ref, printable(strings.Join(r.talk.schemes, ", ")), answer))
	case refused && r.fingerprint == Anonymous:
		return fault.NewUser(v1alpha1.ReasonImageUnauthorized,
			fmt.Errorf("image %s: the registry requires credentials, or has no such image: name a Secret in imagePullSecrets (%s)", r.ref, answer))
	case refused:
		return fault.NewUser(v1alpha1.ReasonImageUnauthorized,
			fmt.Errorf("image %s: the registry refuses the credentials of imagePullSecrets: correct the Secret (%s)", r.ref, answer))
	case status == http.StatusBadRequest && (said.code == "NAME_INVALID" || said.code == "TAG_INVALID"):
		return invalid(r.ref, fmt.Errorf("the registry does not take the name: correct it (%s)", answer))
	case status == http.StatusBadRequest:
		return invalid(r.ref, fmt.Errorf("the registry does not take the request: check that %s is an OCI registry (%s)", r.ref.Registry, answer))
	default: // of others, the registry or a proxy before it is the cause
		return r.later(errors.New(answer))
	}
}

// redirected: the last request went to another server, which has no part in who may have what.
func (r *repository) redirected() bool {
	return !r.talk.tokenServer && r.talk.asked != "" && r.talk.asked != r.ref.host()
}

// whose tells, for messages, which server it was, if it was not the registry.
func (r *repository) whose() string {
	switch {
	case r.talk.tokenServer:
		return "token server " + r.talk.asked + ": "
	case r.redirected():
		return r.talk.asked + ", where it redirects to: "
	default:
		return ""
	}
}

// later is an error that may pass by itself, perhaps when the registry said so.
func (r *repository) later(err error) error {
	after := r.talk.retryAfter
	if after == 0 {
		return unreachable(r.ref, err)
	}
	return fault.NewTransient(v1alpha1.ReasonRegistryUnreachable, laterError{
		fmt.Errorf("pulling image %s from %s failed, retrying after %s, as it says: %w", r.ref, r.ref.Registry, after, err), after,
	})
}

// classify sorts an error before, or within, an answer. It drops URLs, which may carry a credential: a
// user's name in the request of a token, a signature in a redirect.
func (r *repository) classify(ctx context.Context, err error) error {
	failed := func(err error) error { return unreachable(r.ref, fmt.Errorf("%s%w", r.whose(), err)) }
	if cause := context.Cause(ctx); cause != nil {
		return failed(cause)
	}
	if e, ok := errors.AsType[*errcode.ErrorResponse](err); ok { // a token server's
		said := words{}
		if len(e.Errors) > 0 {
			said = wordsOf(e.Errors[0])
		}
		return r.refusal("token", e.StatusCode, said)
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return r.refusal("credential", http.StatusUnauthorized, words{})
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return failed(errors.New("it serves plain HTTP: list it in agent.insecureRegistries"))
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return failed(e)
	}
	if _, sent := errors.AsType[*url.Error](err); r.talk.tokenServer && !sent {
		return failed(errors.New("its answer holds no token"))
	}
	for {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
			continue
		}
		inner := errors.Unwrap(err)
		if inner == nil {
			return failed(err)
		}
		err = inner
	}
}
