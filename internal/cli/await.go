package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// progress tells on a terminal what a command waits for, once it has waited for a second, in one line that goes again.
type progress struct {
	out   io.Writer
	since time.Time
	text  string
}

func (s *session) progress() *progress {
	p := &progress{out: io.Discard, since: time.Now()}
	if isTerminal(s.ErrOut) {
		p.out = s.ErrOut
	}
	return p
}

func isTerminal(stream any) bool {
	f, is := stream.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

func (p *progress) say(text string) {
	if p.text = text; time.Since(p.since) >= time.Second {
		line := []rune(clean(text))
		fmt.Fprintf(p.out, "\r\x1b[K%s", string(line[:min(len(line), 120)]))
	}
}

func (p *progress) end() {
	if time.Since(p.since) >= time.Second {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// awaitVM shows done each version of a VirtualMachine until it is content: first the present one, nil once it is gone, which
// ends it.
func (s *session) awaitVM(ctx context.Context, vm *v1alpha1.VirtualMachine, done func(*v1alpha1.VirtualMachine) (bool, error)) error {
	p := s.progress()
	defer p.end()
	see := func(now *v1alpha1.VirtualMachine) (bool, error) {
		is, err := done(now)
		if now != nil {
			p.say("waiting for " + now.Name + ": " + situation(now))
		}
		return is || now == nil, err
	}
	for {
		now := &v1alpha1.VirtualMachine{}
		err := s.api.Get(ctx, client.ObjectKeyFromObject(vm), now)
		if apierrors.IsNotFound(err) || err == nil && now.UID != vm.UID {
			_, err = see(nil)
			return err
		}
		if err != nil {
			return err
		}
		if is, err := see(now); is || err != nil {
			return err
		}
		w, err := s.api.Watch(ctx, &v1alpha1.VirtualMachineList{}, &client.ListOptions{Namespace: vm.Namespace, Raw: &metav1.ListOptions{
			FieldSelector: "metadata.name=" + vm.Name, ResourceVersion: now.ResourceVersion,
		}})
		if err != nil {
			return err
		}
		is, err := p.follow(ctx, w, see)
		w.Stop()
		if is || err != nil {
			return err
		}
	}
}

// follow shows what a watch tells until see has seen enough, or the API server ends the watch, as it does now and then.
func (p *progress) follow(ctx context.Context, w watch.Interface, see func(*v1alpha1.VirtualMachine) (bool, error)) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-time.After(time.Second):
			p.say(p.text)
		case event, isOpen := <-w.ResultChan():
			vm, isVM := event.Object.(*v1alpha1.VirtualMachine)
			if !isOpen || event.Type == watch.Error {
				return false, nil
			} else if event.Type == watch.Deleted {
				vm = nil
			}
			if is, err := see(vm); isVM && (is || err != nil) {
				return is, err
			}
		}
	}
}

// situation is one line on how a VirtualMachine is.
func situation(vm *v1alpha1.VirtualMachine) string {
	if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status != metav1.ConditionTrue {
		return fmt.Sprintf("%s: %s: %s", vm.Status.Phase, c.Reason, c.Message)
	}
	return string(vm.Status.Phase)
}

// runs tells whether the guest of the spec as it is runs, as far as the agent has reported.
func runs(vm *v1alpha1.VirtualMachine) bool {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionRunning)
	return c != nil && c.Status == metav1.ConditionTrue && vm.Status.ObservedGeneration >= vm.Generation && c.ObservedGeneration >= vm.Generation
}
