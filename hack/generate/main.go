// Command generate writes every generated file of the repository, from the
// markers in the code and from the chart, and noVNC from its package. Run it by `make generate`.
//
// It expects controller-gen and helm on PATH.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	chart  = "charts/berth"
	config = "config"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() error {
	scratch, err := os.MkdirTemp("", "berth-generate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for _, args := range [][]string{
		{"object", "paths=./api/..."},
		{"crd", "paths=./api/...", "output:crd:dir=" + filepath.Join(scratch, "crd")},
		{"rbac:roleName=berth-operator,fileName=operator.yaml", "paths=./controllers/...", "output:rbac:dir=" + scratch},
		{"rbac:roleName=berth-agent,fileName=agent.yaml", "paths=./internal/agent/...", "output:rbac:dir=" + scratch},
	} {
		if _, err := command("controller-gen", args...); err != nil {
			return err
		}
	}
	generated := filepath.Join(chart, "generated")
	for _, dir := range []string{generated, config} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	var resources []string
	crds, err := filepath.Glob(filepath.Join(scratch, "crd", "*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range crds {
		raw, err := trimmed(path)
		if err != nil {
			return err
		}
		_, kind, _ := strings.Cut(filepath.Base(path), "_")
		if err := write(filepath.Join(generated, "crd-"+kind), raw); err != nil {
			return err
		}
		if err := write(filepath.Join(config, "crd", kind), raw); err != nil {
			return err
		}
		resources = append(resources, "crd/"+kind)
	}
	for _, name := range []string{"operator", "agent"} {
		raw, err := os.ReadFile(filepath.Join(scratch, name+".yaml"))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(generated, "rules-"+name+".yaml"), raw); err != nil {
			return err
		}
	}
	templates, err := filepath.Glob(filepath.Join(chart, "templates", "*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range templates {
		name := filepath.Base(path)
		if name == "crds.yaml" {
			continue
		}
		raw, err := command("helm", "template", "berth", chart, "--namespace", "berth-system", "--kube-version", "1.31.0", "--show-only", "templates/"+name)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(config, "install", name), raw); err != nil {
			return err
		}
		resources = append(resources, "install/"+name)
	}
	raw, err := yaml.Marshal(map[string]any{
		"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
		"namespace": "berth-system", "resources": resources,
	})
	if err != nil {
		return err
	}
	if err := write(filepath.Join(config, "kustomization.yaml"), raw); err != nil {
		return err
	}
	return novnc()
}

// foreign are the paths of fields that are Kubernetes' own types: they keep their schema, on one line, since its
// indentation is half of it, and drop their descriptions, which are longer than all of ours.
var foreign = []string{
	"spec.properties.affinity", "spec.properties.tolerations", "spec.properties.topologySpreadConstraints",
	"spec.properties.readinessProbe", "spec.properties.livenessProbe", "spec.properties.startupProbe",
	"spec.properties.volumeClaimTemplates.items.properties.spec",
	"status.properties.conditions",
}

// trimmed reads a CRD, drops the descriptions of foreign types and marks it to outlive an uninstall: with the CRD every guest would go.
func trimmed(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var crd map[string]any
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	metadata := crd["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
		metadata["annotations"] = annotations
	}
	annotations["helm.sh/resource-policy"] = "keep"
	var oneLine []string // each line, after what stands for it
	for _, v := range crd["spec"].(map[string]any)["versions"].([]any) {
		schema := v.(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
		properties := schema["properties"].(map[string]any)
		for _, every := range []string{"apiVersion", "kind"} { // kind of object has these
			dropDescriptions(properties[every])
		}
		for _, path := range foreign {
			parent, name := properties, path
			for key, rest, deeper := strings.Cut(name, "."); deeper && parent != nil; key, rest, deeper = strings.Cut(name, ".") {
				parent, _ = parent[key].(map[string]any)
				name = rest
			}
			field, ok := parent[name].(map[string]any)
			if !ok {
				continue
			}
			own := field["description"]
			dropDescriptions(field)
			field["description"] = own
			boundCommand(field)
			line, err := json.Marshal(field)
			if err != nil {
				return nil, err
			}
			parent[name] = "schema of " + path
			oneLine = append(oneLine, "schema of "+path, string(line))
		}
	}
	text, err := yaml.Marshal(crd)
	if err != nil {
		return nil, err
	}
	return []byte(strings.NewReplacer(oneLine...).Replace(string(text))), nil
}

// boundCommand bounds the command of a probe, as its rules in CEL need it: the API server refuses one over what has no bound.
func boundCommand(field map[string]any) {
	properties, _ := field["properties"].(map[string]any)
	exec, ok := properties["exec"].(map[string]any)
	if !ok {
		return
	}
	command := exec["properties"].(map[string]any)["command"].(map[string]any)
	command["maxItems"] = 256
	command["items"].(map[string]any)["maxLength"] = 32700
}

func dropDescriptions(node any) {
	switch node := node.(type) {
	case map[string]any:
		if _, isText := node["description"].(string); isText {
			delete(node, "description")
		}
		for _, child := range node {
			dropDescriptions(child)
		}
	case []any:
		for _, child := range node {
			dropDescriptions(child)
		}
	}
}

func command(name string, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.Bytes(), nil
}

func write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
