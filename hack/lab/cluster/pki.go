package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validity of every certificate. A lab does not live longer.
const validity = 30 * 24 * time.Hour

// keys is a directory of PEM files: NAME.crt and NAME.key.
type keys string

func (k keys) crt(name string) string        { return filepath.Join(string(k), name+".crt") }
func (k keys) key(name string) string        { return filepath.Join(string(k), name+".key") }
func (k keys) kubeconfig(name string) string { return filepath.Join(string(k), name+".kubeconfig") }

// authority signs the cluster's certificates.
type authority struct {
	keys
	crt *x509.Certificate
	key crypto.Signer
}

// openAuthority reads the cluster's authority, or makes it.
func openAuthority(k keys) (*authority, error) {
	a := &authority{keys: k}
	raw, err := os.ReadFile(k.key("ca"))
	if errors.Is(err, fs.ErrNotExist) {
		err := a.create()
		return a, err
	}
	if err != nil {
		return a, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return a, fmt.Errorf("%s holds no key", k.key("ca"))
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return a, err
	}
	a.key = key
	raw, err = os.ReadFile(k.crt("ca"))
	if err != nil {
		return a, err
	}
	if block, _ = pem.Decode(raw); block == nil {
		return a, fmt.Errorf("%s holds no certificate", k.crt("ca"))
	}
	a.crt, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

func (a *authority) create() error {
	if err := os.MkdirAll(string(a.keys), 0o700); err != nil {
		return err
	}
	a.crt = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "berth-lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	a.key = key
	// The key last: it says that all of the authority is there.
	return a.write("ca", a.crt, key)
}

// issue makes a certificate for a subject, for use as client and server.
func (a *authority) issue(name string, subject pkix.Name, hosts ...string) error {
	if _, err := os.Stat(a.keys.key(name)); err == nil {
		return nil
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	crt := &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			crt.IPAddresses = append(crt.IPAddresses, ip)
		} else {
			crt.DNSNames = append(crt.DNSNames, h)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return a.write(name, crt, key)
}

func (a *authority) write(name string, crt *x509.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, crt, a.crt, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing the certificate of %s: %w", name, err)
	}
	if name == "ca" {
		if a.crt, err = x509.ParseCertificate(der); err != nil {
			return err
		}
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(a.keys.crt(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(a.keys.key(name), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600),
	)
}

// user makes a certificate for a user of the API, and the file to use it with.
func (a *authority) user(name, user string, groups ...string) error {
	if err := a.issue(name, pkix.Name{CommonName: user, Organization: groups}); err != nil {
		return err
	}
	data := map[string]string{"Server": apiServer, "Name": "berth-lab"}
	for field, path := range map[string]string{"CA": a.keys.crt("ca"), "Crt": a.keys.crt(name), "Key": a.keys.key(name)} {
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[field] = base64.StdEncoding.EncodeToString(raw)
	}
	return render("kubeconfig.yaml", a.keys.kubeconfig(name), data)
}
