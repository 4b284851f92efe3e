package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func invalid(ref Reference, err error) error {
	return fault.ByUser(v1alpha1.ReasonImageInvalid, fmt.Errorf("image %s: %w", ref, err))
}

func notDisk(ref Reference, format string, args ...any) error {
	return fault.ByUser(v1alpha1.ReasonImageNotDisk, fmt.Errorf("image %s: "+format, append([]any{ref}, args...)...))
}

func tooLarge(ref Reference, format string, args ...any) error {
	return fault.ByUser(v1alpha1.ReasonImageTooLarge, fmt.Errorf("image %s: "+format, append([]any{ref}, args...)...))
}

func mismatch(ref Reference, what string) error {
	return fault.ByUser(v1alpha1.ReasonImageDigestMismatch,
		fmt.Errorf("image %s: %s is not what its digest says: push the image again; nothing of it was kept", ref, what))
}

func unreachable(ref Reference, err error) error {
	return fault.ByTime(v1alpha1.ReasonRegistryUnreachable,
		fmt.Errorf("pulling image %s from %s failed, it is tried again: %w", ref, ref.Registry, err))
}

// refusal classifies an answer that is no success.
func (s *session) refusal(status int) error {
	told := fmt.Sprintf("%d %s", status, http.StatusText(status))
	switch {
	case status == http.StatusNotFound:
		return fault.ByUser(v1alpha1.ReasonImageNotFound,
			fmt.Errorf("image %s: the registry has no such image (%s): correct the name, or push it", s.ref, told))
	case (status == http.StatusUnauthorized || status == http.StatusForbidden) && s.proof == Anonymous:
		return fault.ByUser(v1alpha1.ReasonImageUnauthorized,
			fmt.Errorf("image %s: the registry wants credentials, or has no such image (%s): name a Secret in imagePullSecrets", s.ref, told))
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fault.ByUser(v1alpha1.ReasonImageUnauthorized,
			fmt.Errorf("image %s: the registry refuses the credentials of imagePullSecrets (%s): mend the Secret", s.ref, told))
	case status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status < 400:
		return unreachable(s.ref, errors.New(told))
	default:
		return invalid(s.ref, fmt.Errorf("the registry refuses the request (%s): correct the name", told))
	}
}

// classify sorts what went wrong before, or within, an answer. It drops URLs, which may carry a credential: a
// user's name in the request of a token, a signature in a redirect.
func (s *session) classify(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return unreachable(s.ref, cause)
	}
	if e, ok := errors.AsType[*errcode.ErrorResponse](err); ok { // a token server's
		return s.refusal(e.StatusCode)
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return s.refusal(http.StatusUnauthorized)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return unreachable(s.ref, errors.New("it speaks plain HTTP: the agent's configuration must list it for that"))
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return unreachable(s.ref, e)
	}
	for {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
			continue
		}
		inner := errors.Unwrap(err)
		if inner == nil {
			return unreachable(s.ref, err)
		}
		err = inner
	}
}
