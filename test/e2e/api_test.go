package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
	"github.com/berth-dev/berth/test/proxy"
)

// TestAPIServerFails has the API server answer agents and operator by errors, often after it did what it was asked, and
// tell them late of what happens. All comes to its right end nevertheless, and nothing happens twice.
func TestAPIServerFails(t *testing.T) {
	l := startAlone(t)
	api := l.proxyAPI()
	l.journeys(few(journeysOf(l.ns)), func() (back func()) {
		api.Spoil(0.2, deep(3*time.Second, 30*time.Second, 30*time.Second))
		return func() {} // it fails to the end
	})
	if n := api.Spoilt(); n < 20 {
		t.Errorf("only %d requests failed", n)
	} else {
		t.Logf("%d requests failed", n)
	}
}

// proxyAPI has Berth talk to the API server through a proxy for the time of a test.
func (l *lab) proxyAPI() *proxy.API {
	l.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		l.Fatal(err)
	}
	host, _, err := net.SplitHostPort(os.Getenv("LAB_TEST_REGISTRY"))
	if err != nil {
		l.Fatal(err)
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(config.CAData) {
		l.Fatal("the lab's kubeconfig has no authority")
	}
	const port = "6443"
	key := filepath.Join(os.Getenv("LAB_DIR"), "pki", "apiserver")
	api := proxy.ServeAPI(l, net.JoinHostPort(host, port), config.Host, key+".crt", key+".key", &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12})
	parts := []string{"daemonset/berth-agent", "deployment/berth-operator"}
	use := func(host, port string) {
		for _, part := range parts {
			l.system("set", "env", part, "KUBERNETES_SERVICE_HOST"+host, "KUBERNETES_SERVICE_PORT"+port)
		}
		for _, part := range parts {
			l.system("rollout", "status", part, "--timeout=2m")
		}
	}
	l.Cleanup(func() {
		api.Spoil(0, 0)
		use("-", "-")
	})
	use("="+host, "="+port)
	return api
}

// TestAPIServerAway stops the API server while guests end. The restart policy of each holds meanwhile, and the truth is
// told afterwards.
func TestAPIServerAway(t *testing.T) {
	l := startAlone(t)
	away := deep(15*time.Second, 10*time.Minute, 30*time.Minute)
	list := []journey{{name: "stays", before: isReady, after: isReady}}
	for _, e := range endings() {
		list = append(list, e.journey())
	}
	c := l.begin(few(list))
	mine := slices.DeleteFunc(endings(), func(e ending) bool { return c.vms[e.journey().name] == nil })
	before := map[string]string{}
	for _, e := range mine {
		name := e.journey().name
		before[name] = fmt.Sprint(qemus(string(c.vms[name].UID)))
		if e.name != isKilled.name {
			l.say(name, "in 5 "+e.name)
		}
	}
	l.say("stays", "count")
	l.Cleanup(func() {
		l.undo("lab", "service", "start", "control", "apiserver")
		l.undo("kubectl", "wait", "nodes", "--all", "--for=condition=Ready", "--timeout=2m")
	})
	service := l.kubectl("", "-n", "default", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}/{.spec.ports[0].port}")
	l.undo("lab", "service", "stop", "control", "apiserver")
	gone := time.Now()
	for _, e := range mine {
		if e.name == isKilled.name {
			e.cause(l, c.vms[e.journey().name])
		}
	}
	for _, e := range mine {
		name := e.journey().name
		env.Eventually(t, name+" to be as its policy says, without an API server", func() bool {
			now := qemus(string(c.vms[name].UID))
			return e.restarts() && len(now) == 1 && fmt.Sprint(now) != before[name] || !e.restarts() && len(now) == 0
		})
	}
	steady := map[string]string{}
	for _, e := range mine {
		name := e.journey().name
		steady[name] = fmt.Sprint(qemus(string(c.vms[name].UID)))
	}
	env.Steadily(t, "what each policy made of it", time.Until(gone.Add(away)), func() bool {
		return !slices.ContainsFunc(mine, func(e ending) bool {
			name := e.journey().name
			return fmt.Sprint(qemus(string(c.vms[name].UID))) != steady[name]
		})
	})
	l.undo("lab", "service", "start", "control", "apiserver")
	env.Eventually(t, "the API server", func() bool {
		_, err := l.tryKubectl("", "get", "--raw=/readyz")
		return err == nil
	})
	answers := time.Now()
	for _, node := range nodes(l) { // by the Service, when kube-proxy has heard that there is one again
		l.undo("lab", "exec", node, "--", "bash", "-c", "until </dev/tcp/"+service+"; do sleep 0.1; done 2>/dev/null")
	}
	back := time.Now()
	for _, e := range mine {
		l.vm(e.journey().name, "to be told of truly", func(vm *v1alpha1.VirtualMachine) bool {
			return exited(vm, e.reason, e.code) && runs(vm) == e.restarts()
		})
	}
	t.Logf("away for %v, for pods %v longer; all was told truly %v after", answers.Sub(gone), back.Sub(answers), time.Since(back))
	c.finish() // for readiness, kubelet has to come back to the API server, too
	t.Logf("and all was as if nothing had been %v after", time.Since(back))
}
