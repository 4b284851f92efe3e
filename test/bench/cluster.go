package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/berth-dev/berth/internal/kube"
)

const (
	systemNamespace = "berth-system"
	operatorUser    = "system:serviceaccount:" + systemNamespace + ":berth-operator"
)

// auditPolicy has the API server write down what the operator writes, and nothing else.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata, users: ["` + operatorUser + `"], verbs: [create, update, patch, delete, deletecollection]}]
`

// schedulerConfig lets the scheduler ask as often as it likes.
const schedulerConfig = `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: %q, qps: 1000, burst: 2000}
`

// stages are the lives of nodes and pods, as kwok plays them.
//
//go:embed kwok.yaml
var stages []byte

// cluster is an API server of its own, with Berth's kinds, roles and policies, a scheduler, and kwok for nodes and kubelets.
type cluster struct {
	client.WithWatch
	config     *rest.Config
	dir        string
	kubeconfig string // the operator's
	reader     string // a token that may read metrics
	server     envtest.Environment
	children   []*child
	// lost is called when one of them ends by itself.
	lost func(error)
}

// child is a process that ends with this one.
type child struct {
	*os.Process
	ended  chan struct{}
	wanted atomic.Bool // its end
}

func startCluster(ctx context.Context, lost func(error)) (c *cluster, err error) {
	c = &cluster{lost: lost}
	if c.dir, err = os.MkdirTemp("", "bench-scale-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if err := os.WriteFile(c.path("audit.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return nil, err
	}
	c.server.CRDDirectoryPaths, c.server.ErrorIfCRDPathMissing = []string{"config/crd"}, true
	c.server.ControlPlane.GetAPIServer().Configure().
		Set("audit-policy-file", c.path("audit.yaml")).Set("audit-log-path", c.path("audit.log")).Set("audit-log-maxsize", "10000")
	if c.config, err = c.server.Start(); err != nil {
		return nil, fmt.Errorf("starting kube-apiserver: %w", err)
	}
	c.config.QPS = -1
	if c.WithWatch, err = client.NewWithWatch(c.config, client.Options{Scheme: kube.Scheme()}); err != nil {
		return nil, err
	}
	if err := c.install(ctx); err != nil {
		return nil, err
	}
	return c, c.startParts()
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// install makes what the chart does, but for the operator and the agents themselves.
func (c *cluster) install(ctx context.Context) error {
	for _, name := range []string{systemNamespace, guestNamespace} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if name == guestNamespace {
			ns.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
		}
		if err := c.Create(ctx, ns); err != nil {
			return err
		}
	}
	for _, file := range []string{"config/install/rbac.yaml", "config/install/policies.yaml"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		documents := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
		for {
			o := &unstructured.Unstructured{}
			if err = documents.Decode(&o.Object); err != nil {
				break
			}
			if len(o.Object) == 0 {
				continue
			}
			if err := c.Create(ctx, o); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading %s: %w", file, err)
		}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: "berth-operator"}}
	operator, err := token(ctx, c, account)
	if err != nil {
		return err
	}
	if c.reader, err = metricsReader(ctx, c, systemNamespace); err != nil {
		return err
	}
	c.kubeconfig = c.path("operator.kubeconfig")
	return c.writeKubeconfig(c.kubeconfig, &api.AuthInfo{Token: operator})
}

func (c *cluster) writeKubeconfig(path string, user *api.AuthInfo) error {
	config := api.NewConfig()
	config.Clusters["scale"] = &api.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	config.AuthInfos["scale"] = user
	config.Contexts["scale"] = &api.Context{Cluster: "scale", AuthInfo: "scale"}
	config.CurrentContext = "scale"
	return clientcmd.WriteToFile(*config, path)
}

// startParts starts the scheduler and kwok.
func (c *cluster) startParts() error {
	admin := c.path("admin.kubeconfig")
	if err := c.writeKubeconfig(admin, &api.AuthInfo{ClientCertificateData: c.config.CertData, ClientKeyData: c.config.KeyData}); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("scheduler.yaml"), fmt.Appendf(nil, schedulerConfig, admin), 0o600); err != nil {
		return err
	}
	if _, err := c.start("kube-scheduler", "--config="+c.path("scheduler.yaml"), "--secure-port=0"); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("kwok.yaml"), stages, 0o600); err != nil {
		return err
	}
	_, err := c.start("kwok", "--config="+c.path("kwok.yaml"), "--kubeconfig="+admin, "--manage-all-nodes=true")
	return err
}

// start starts a process that ends with this one. What it has to say goes to a file, which stays.
func (c *cluster) start(name string, args ...string) (*child, error) {
	path := "_out/scale-" + filepath.Base(name) + ".log"
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...) // it ends in stop
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // of the thread: see inCluster
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &child{Process: cmd.Process, ended: make(chan struct{})}
	c.children = append(c.children, p)
	go func() {
		err := cmd.Wait()
		if !p.wanted.Load() {
			c.lost(fmt.Errorf("%s ended (%w): see %s", name, err, path))
		}
		close(p.ended)
	}()
	return p, nil
}

// end sends a process a signal and waits until it has ended.
func (p *child) end(s syscall.Signal) {
	p.wanted.Store(true)
	_ = p.Signal(s) // it may have ended
	<-p.ended
}

func (c *cluster) stop() error {
	for _, p := range c.children {
		p.end(syscall.SIGKILL)
	}
	return errors.Join(c.server.Stop(), os.RemoveAll(c.dir))
}

// operatorWrites lists what the operator has written, as the API server audits it, beside what it does to be elected and
// to know who may read its metrics.
func (c *cluster) operatorWrites() ([]string, error) {
	raw, err := os.ReadFile(c.path("audit.log"))
	if err != nil {
		return nil, err
	}
	var writes []string
	for line := range strings.Lines(string(raw)) {
		var event struct {
			Verb      string
			ObjectRef struct{ Resource, Subresource, Namespace, Name string }
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return nil, fmt.Errorf("reading the audit log: %w", err)
		}
		of := event.ObjectRef
		if of.Namespace != systemNamespace && of.Resource != "tokenreviews" && of.Resource != "subjectaccessreviews" {
			writes = append(writes, strings.Join([]string{event.Verb, of.Resource, of.Subresource, of.Name}, " "))
		}
	}
	return writes, nil
}
