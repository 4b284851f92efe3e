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

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// refuse is an error that the user can correct.
func (r Reference) refuse(reason v1alpha1.Reason, format string, args ...any) error {
	return fault.NewUser(reason, fmt.Errorf("image %s: "+format, append([]any{r}, args...)...))
}

func (r Reference) notDisk(format string, args ...any) error {
	return r.refuse(v1alpha1.ReasonImageNotDisk, format, args...)
}

func (r Reference) mismatch(what string) error {
	return r.refuse(v1alpha1.ReasonImageDigestMismatch, "%s is not what its digest says: push the image again; nothing of it was kept", what)
}

// unreachable is an error that may pass by itself, perhaps when the registry said so.
func (r *repository) unreachable(err error) error {
	when := ""
	if after := r.talk.retryAfter; after > 0 {
		when, err = fmt.Sprintf(" after %s, as it says", after), laterError{err, after}
	}
	return fault.NewTransient(v1alpha1.ReasonRegistryUnreachable,
		fmt.Errorf("pulling image %s from %s failed, retrying%s: %w", r.ref, r.at.Registry, when, err))
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
		Errors errcode.Errors `json:"errors"`
	}
	_ = json.NewDecoder(io.LimitReader(body, 16<<10)).Decode(&said) // another has none
	return wordsOf(said.Errors)
}

func wordsOf(errs errcode.Errors) words {
	if len(errs) == 0 {
		return words{}
	}
	code, message := errs[0].Code, errs[0].Message
	return words{code: printable(code), text: printable(strings.Trim(code+": "+message, ": "))}
}

// printable is text that may stand in a condition.
func printable(text string) string { return fault.Printable(text, maxWords) }

// refusal classifies an answer that is no success, to the question for what.
func (r *repository) refusal(what string, status int, said words) error {
	answer := strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
	if said.text != "" && r.ref.URL == "" { // what a web server says is for nobody else
		answer += ": " + said.text
	}
	answer = r.whose() + answer
	refuse := func(reason v1alpha1.Reason, advice string, args ...any) error {
		return r.ref.refuse(reason, advice+" (%s)", append(args, answer)...)
	}
	unauthorized := status == http.StatusUnauthorized || status == http.StatusForbidden
	layer, ofLayer := strings.CutPrefix(what, "blobs/")
	ofFile := r.ref.URL != "" && !r.talk.tokenServer
	switch {
	case ofFile && (status == http.StatusNotFound || status == http.StatusGone):
		return refuse(v1alpha1.ReasonImageNotFound, "the server has no such file: correct the URL")
	case ofFile && status == http.StatusRequestedRangeNotSatisfiable:
		return refuse(v1alpha1.ReasonImageNotDisk, "it is empty")
	case ofFile && unauthorized && r.fingerprint == Anonymous:
		return refuse(v1alpha1.ReasonImageUnauthorized, "the server requires credentials: name a Secret for %s in imagePullSecrets", r.ref.Registry)
	case r.talk.tokenServer && !unauthorized, r.redirected():
		return r.unreachable(errors.New(answer))
	case status == http.StatusNotFound && ofLayer:
		return refuse(v1alpha1.ReasonImageNotFound, "the registry has its manifest, but not its layer %s: push it again", layer)
	case status == http.StatusNotFound, status == http.StatusGone:
		return refuse(v1alpha1.ReasonImageNotFound, "the registry has no such image: correct the name, or push it")
	case status == http.StatusUnavailableForLegalReasons:
		return refuse(v1alpha1.ReasonImageUnauthorized, "the registry may not serve it: use another image")
	case unauthorized && len(r.talk.schemes) > 0:
		return refuse(v1alpha1.ReasonImageUnauthorized,
			"the registry wants credentials by %s alone: have its administrator offer Basic or Bearer", printable(strings.Join(r.talk.schemes, ", ")))
	case unauthorized && r.fingerprint == Anonymous:
		return refuse(v1alpha1.ReasonImageUnauthorized,
			"the registry requires credentials, or has no such image: name a Secret in imagePullSecrets")
	case unauthorized:
		return refuse(v1alpha1.ReasonImageUnauthorized, "the server refuses the credentials of imagePullSecrets: correct the Secret")
	case status == http.StatusBadRequest && (said.code == "NAME_INVALID" || said.code == "TAG_INVALID"):
		return refuse(v1alpha1.ReasonImageInvalid, "the registry does not take the name: correct it")
	case status == http.StatusBadRequest:
		return refuse(v1alpha1.ReasonImageInvalid, "the registry does not take the request: check that %s is an OCI registry", r.ref.Registry)
	default: // of others, the registry or a proxy before it is the cause
		return r.unreachable(errors.New(answer))
	}
}

// redirected: the last request went to another server, which has no part in who may have what.
func (r *repository) redirected() bool {
	return !r.talk.tokenServer && r.talk.asked != "" && r.talk.asked != r.at.host()
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

// classify sorts an error before, or within, an answer. It drops URLs, which may carry a credential: a
// user's name in the request of a token, a signature in a redirect.
func (r *repository) classify(ctx context.Context, err error) error {
	failed := func(err error) error { return r.unreachable(fmt.Errorf("%s%w", r.whose(), err)) }
	if cause := context.Cause(ctx); cause != nil {
		return failed(cause)
	}
	if e, ok := errors.AsType[*errcode.ErrorResponse](err); ok { // a token server's
		return r.refusal("token", e.StatusCode, wordsOf(e.Errors))
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
	ofRequest, sent := errors.AsType[*url.Error](err)
	if r.talk.tokenServer && !sent {
		return failed(errors.New("its answer holds no token"))
	}
	for ; sent; ofRequest, sent = errors.AsType[*url.Error](err) {
		err = ofRequest.Err
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return failed(err)
}
