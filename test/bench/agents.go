package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const agentName = "berth-agent" // of the DaemonSet, and in its pods' labels

// logSteps has the agents log their steps. It returns how to take that back.
func (b *bench) logSteps(ctx context.Context) (func() error, error) {
	agents, err := b.clients.AppsV1().DaemonSets(systemNamespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	args := agents.Spec.Template.Spec.Containers[0].Args
	back := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		return b.rollOut(ctx, args)
	}
	if err := b.rollOut(ctx, append(slices.Clip(args), "-v=1")); err != nil {
		return nil, errors.Join(err, back())
	}
	return back, nil
}

// rollOut gives the agents arguments, and waits until all agents have them.
func (b *bench) rollOut(ctx context.Context, args []string) error {
	patch, err := json.Marshal([]any{map[string]any{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}})
	if err != nil {
		return err
	}
	all := b.clients.AppsV1().DaemonSets(systemNamespace)
	patched, err := all.Patch(ctx, agentName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("giving agents the arguments %q: %w", args, err)
	}
	w, err := all.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + agentName})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if agents, ok := e.Object.(*appsv1.DaemonSet); ok && rolledOut(agents, patched.Generation) {
			return nil
		}
	}
	return fmt.Errorf("waiting for agents with the arguments %q: %w", args, ctx.Err())
}

// rolledOut is as kubectl rollout status has it.
func rolledOut(d *appsv1.DaemonSet, generation int64) bool {
	s := d.Status
	return s.ObservedGeneration >= generation &&
		s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberAvailable == s.DesiredNumberScheduled
}

// steps are those that the agent has taken for a guest, by its log.
func (b *bench) steps(ctx context.Context, vm *v1alpha1.VirtualMachine) ([]moment, error) {
	var pods corev1.PodList
	if err := b.List(ctx, &pods, client.InNamespace(systemNamespace),
		client.MatchingLabels{"app.kubernetes.io/name": agentName}, client.MatchingFields{"spec.nodeName": b.node}); err != nil {
		return nil, err
	}
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("want one agent on %s, there are %d", b.node, len(pods.Items))
	}
	log, err := b.clients.CoreV1().Pods(systemNamespace).GetLogs(pods.Items[0].Name, &corev1.PodLogOptions{SinceTime: &vm.CreationTimestamp}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the log of %s: %w", pods.Items[0].Name, err)
	}
	defer log.Close()
	steps, err := stepsIn(log, vm.UID)
	if err == nil && len(steps) == 0 {
		err = fmt.Errorf("%s has logged no step for %s", pods.Items[0].Name, vm.Name)
	}
	return steps, err
}

// stepsIn reads an agent's log.
func stepsIn(log io.Reader, guest types.UID) ([]moment, error) {
	var steps []moment
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(`"msg":"Did step"`)) {
			continue
		}
		var line struct {
			Time       time.Time
			Guest      types.UID
			Step, Took string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("reading %q: %w", lines.Text(), err)
		}
		took, err := time.ParseDuration(line.Took)
		if err != nil {
			return nil, fmt.Errorf("reading %q: %w", lines.Text(), err)
		}
		if line.Guest == guest {
			steps = append(steps, moment{line.Step, line.Time, took})
		}
	}
	return steps, lines.Err()
}
