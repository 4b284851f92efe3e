package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestAuthoritySignsAndIsFoundAgain(t *testing.T) {
	k := keys(t.TempDir())
	a, err := openAuthority(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.issue("one", pkix.Name{CommonName: "one"}, controlAddress, "kubernetes"); err != nil {
		t.Fatal(err)
	}
	again, err := openAuthority(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.issue("two", pkix.Name{CommonName: "two"}, "kubernetes"); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.crt)
	for _, name := range []string{"one", "two"} {
		pair, err := tls.LoadX509KeyPair(k.crt(name), k.key(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "kubernetes"}); err != nil {
			t.Errorf("certificate of %s: %v", name, err)
		}
	}
}

func TestNodesHaveTheirConfiguration(t *testing.T) {
	l := Lab{Dir: t.TempDir(), Bin: map[string]string{"cni": "/cni", "runc": "/runc"}}
	a, err := openAuthority(l.keys())
	if err != nil {
		t.Fatal(err)
	}
	if err := nodeKeys(a, 1); err != nil {
		t.Fatal(err)
	}
	if err := l.nodeFiles(1); err != nil {
		t.Fatal(err)
	}
	if err := systemdHostFiles(l.Dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		l.config(1, "kubelet.yaml"), l.config(1, "kube-proxy.yaml"), l.keys().kubeconfig("node1"),
		filepath.Join(l.Dir, "kubelet.yaml"), filepath.Join(l.Dir, "kube-proxy.yaml"),
	} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var object map[string]any
		if err := yaml.UnmarshalStrict(raw, &object); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
