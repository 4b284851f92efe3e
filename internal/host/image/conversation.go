package image

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds how long a registry can have us wait.
const maxRetryAfter = 6 * time.Hour

// conversation is the way to a registry, its token server, and wherever they redirect to. It notes what only the
// answers' headers tell.
type conversation struct {
	next http.RoundTripper
	// asked is the host of the last request.
	asked string
	// tokenServer: the last request was for a token.
	tokenServer bool
	// schemes are those that the registry challenged with, if we speak none of them.
	schemes []string
	// retryAfter is when the last answer wants to be asked again.
	retryAfter time.Duration

	realm *url.URL
}

func (c *conversation) RoundTrip(req *http.Request) (*http.Response, error) {
	c.asked, c.retryAfter = req.URL.Host, 0
	c.tokenServer = c.realm != nil && req.URL.Host == c.realm.Host && req.URL.Path == c.realm.Path
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	c.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	if resp.StatusCode == http.StatusUnauthorized && !c.tokenServer {
		chosen, schemes := chooseChallenge(resp.Header.Values("WWW-Authenticate"))
		resp.Header.Set("WWW-Authenticate", chosen) // the client reads the first alone
		c.schemes = schemes
		if _, rest, ok := strings.Cut(chosen, `realm="`); ok {
			realm, _, _ := strings.Cut(rest, `"`)
			c.realm, _ = url.Parse(realm) // one that cannot be parsed is refused by the client
		}
	}
	return resp, nil
}

// chooseChallenge returns the challenge that we answer: a token's first, as docker. If there is none, it returns the
// schemes that there are.
func chooseChallenge(values []string) (chosen string, schemes []string) {
	for _, challenge := range splitChallenges(values) {
		scheme, _, _ := strings.Cut(challenge, " ")
		switch {
		case strings.EqualFold(scheme, "Bearer"):
			return challenge, nil
		case strings.EqualFold(scheme, "Basic"):
			chosen = challenge
		default:
			schemes = append(schemes, scheme)
		}
	}
	if chosen != "" {
		schemes = nil
	}
	return chosen, schemes
}

// splitChallenges splits the values of WWW-Authenticate into challenges, RFC 9110 section 11.6.1: both challenges and
// their parameters are separated by commas.
func splitChallenges(values []string) (list []string) {
	for _, value := range values {
		first := len(list)
		for _, part := range splitUnquoted(value) {
			name, rest, _ := strings.Cut(part, " ")
			if parameter := strings.Contains(name, "=") || strings.HasPrefix(strings.TrimSpace(rest), "="); parameter && len(list) > first {
				list[len(list)-1] += "," + part
			} else if !parameter {
				list = append(list, part)
			}
		}
	}
	return list
}

// splitUnquoted splits at the commas that stand in no quoted string.
func splitUnquoted(value string) (parts []string) {
	quoted, escaped := false, false
	for part := range strings.FieldsFuncSeq(value, func(r rune) bool {
		switch {
		case escaped:
			escaped = false
		case quoted && r == '\\':
			escaped = true
		case r == '"':
			quoted = !quoted
		}
		return r == ',' && !quoted
	}) {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// parseRetryAfter reads Retry-After, RFC 9110 section 10.2.3: seconds, or a date.
func parseRetryAfter(value string, now time.Time) time.Duration {
	var after time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		after = date.Sub(now)
	}
	return min(max(after, 0), maxRetryAfter)
}
