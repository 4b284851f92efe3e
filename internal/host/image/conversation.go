package image

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds how long a registry can have us wait.
const maxRetryAfter = 6 * time.Hour

// conversation is the way to a registry, its token server, and wherever they redirect to. It notes what only the
// answers' headers tell.
type conversation struct {
	client *Client
	// asked is the host of the last request.
	asked string
	// tokenServer: the last request was for a token.
	tokenServer bool
	// schemes are those that the registry challenged with, if we speak none of them.
	schemes []string
	// retryAfter is when the last answer, a refusal, wants to be asked again.
	retryAfter time.Duration

	realm *url.URL
}

func (c *conversation) RoundTrip(req *http.Request) (*http.Response, error) {
	c.asked, c.retryAfter = req.URL.Host, 0
	c.tokenServer = c.realm != nil && req.URL.Host == c.realm.Host && req.URL.Path == c.realm.Path
	// Neither a redirect nor a token server can lead to where the administrator did not allow it.
	if req.URL.Scheme != "https" && !slices.Contains(c.client.options.PlainHTTP, req.URL.Host) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed: list it in agent.insecureRegistries", req.URL.Host)
	}
	resp, err := c.client.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		c.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
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
		return chosen, nil
	}
	return "", schemes
}

// element is what stands between the commas of a list that are in no quoted string.
var element = regexp.MustCompile(`(?s)([^",]|"([^"\\]|\\.)*("|$))+`)

// splitChallenges splits the values of WWW-Authenticate into challenges, RFC 9110 section 11.6.1: both challenges and
// their parameters are separated by commas.
func splitChallenges(values []string) (list []string) {
	for _, part := range element.FindAllString(strings.Join(values, ","), -1) {
		part = strings.TrimSpace(part)
		name, rest, _ := strings.Cut(part, " ")
		parameter := strings.Contains(name, "=") || strings.HasPrefix(strings.TrimSpace(rest), "=")
		switch {
		case part == "":
		case !parameter:
			list = append(list, part)
		case len(list) > 0:
			list[len(list)-1] += "," + part
		}
	}
	return list
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
