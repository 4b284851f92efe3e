package image

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// Registry is what the administrator says of a registry, or of a web server.
type Registry struct {
	// Host is host[:port], as images name it.
	Host string `json:"host"`
	// Mirrors are asked before it, in order, as https://host[:port][/prefix]: for prefix/repository. A digest holds
	// whoever serves it; what a tag means is theirs to say.
	Mirrors []string `json:"mirrors,omitempty"`
	// CA are certificates in PEM that verify it and its mirrors, beside the system's.
	CA string `json:"ca,omitempty"`
}

// Registries are a flag's value: a list in JSON, or "".
type Registries []Registry

// UnmarshalText reads a list. Errors say what is wrong with which.
func (r *Registries) UnmarshalText(text []byte) error {
	if *r = nil; len(text) == 0 {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode((*[]Registry)(r)); err != nil {
		return err
	}
	for _, one := range *r {
		if one.Host == "" || strings.ContainsAny(one.Host, "/ ") {
			return fmt.Errorf("registry %q: its host must be host or host:port", one.Host)
		}
		if one.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(one.CA)) {
			return fmt.Errorf("registry %s: its ca holds no certificate in PEM", one.Host)
		}
		for _, m := range one.Mirrors {
			if u, err := url.Parse(m); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" {
				return fmt.Errorf("registry %s: its mirror %q must be https://host[:port][/prefix]", one.Host, m)
			}
		}
	}
	return nil
}

// configure takes what the administrator says of servers: he may place them at addresses of the node's own.
func (c *Client) configure(base *http.Transport) {
	for _, r := range c.options.Registries {
		hosts := []string{r.Host}
		for _, m := range r.Mirrors {
			u, err := url.Parse(m)
			if err != nil {
				continue // UnmarshalText refuses it
			}
			hosts = append(hosts, u.Host)
			if u.Scheme == "http" {
				c.options.PlainHTTP = append(slices.Clip(c.options.PlainHTTP), u.Host)
			}
			at := Reference{Registry: u.Host, Repository: strings.Trim(u.Path, "/")}
			c.mirrors[r.Host] = append(c.mirrors[r.Host], at)
		}
		c.trusted = append(c.trusted, hosts...)
		if r.CA == "" {
			continue
		}
		transport := base.Clone()
		if transport.TLSClientConfig.RootCAs, _ = x509.SystemCertPool(); transport.TLSClientConfig.RootCAs == nil {
			transport.TLSClientConfig.RootCAs = x509.NewCertPool() // a system without any
		}
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(bytes.TrimSpace([]byte(r.CA)))
		for _, host := range hosts {
			c.transports[host] = transport
		}
	}
}

// mirrorRest is how long a mirror that failed is passed over.
const mirrorRest = time.Minute

// places are where an image may be asked for: at mirrors, but those that failed since a time, and at last where its name
// says.
func (c *Client) places(ref Reference, since time.Time) (places []Reference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.mirrors[ref.Registry] {
		if ref.URL == "" && c.failed[m].Before(since) {
			at := ref
			at.Registry, at.Repository = m.Registry, path.Join(m.Repository, ref.Repository)
			places = append(places, at)
		}
	}
	return append(places, ref)
}

// Fingerprints are those of the keys that fit an image, by its own name or at a mirror, and Anonymous: who holds one that
// Resolve has found to give access to a digest may use that digest without asking again.
func (c *Client) Fingerprints(keys Keychain, ref Reference) (proofs []string) {
	for _, at := range c.places(ref, time.Now().Add(mirrorRest)) {
		for _, with := range keys.candidates(at) {
			proofs = append(proofs, with.fingerprint)
		}
	}
	return proofs
}

// passOver has the mirror that failed rest. That a pull was given up is not its fault.
func (r *repository) passOver(err error) {
	if r.at == r.ref || errors.Is(err, context.Canceled) {
		return
	}
	prefix := strings.Trim(strings.TrimSuffix(r.at.Repository, r.ref.Repository), "/")
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	r.client.failed[Reference{Registry: r.at.Registry, Repository: prefix}] = time.Now()
}
