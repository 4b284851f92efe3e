package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"golang.org/x/term"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// progress tells on a terminal what a command waits for, once it has waited for a second, in one line that goes again.
type progress struct {
	out   io.Writer // nil where there is no terminal
	due   <-chan time.Time
	text  string
	shown bool
}

func (s *session) progress() *progress {
	p := &progress{due: time.After(time.Second)}
	if f, is := s.ErrOut.(*os.File); is && term.IsTerminal(int(f.Fd())) {
		p.out = f
	}
	return p
}

// say sets what is waited for, and shows it if its time has come.
func (p *progress) say(text string) {
	p.text = text
	select {
	case <-p.due:
		p.shown = true
	default:
	}
	if p.shown && p.out != nil {
		text := []rune(clean(p.text))
		fmt.Fprintf(p.out, "\r\x1b[K%s", string(text[:min(len(text), 120)]))
	}
}

// end takes the line away.
func (p *progress) end() {
	if p.shown && p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// await watches one object until done says so, and hands over each of its versions: first the present one; nil once it is
// gone. It is done as well when ctx is.
func (s *session) await(ctx context.Context, object client.Object, list client.ObjectList, uid types.UID, done func(client.Object) (string, bool, error)) error {
	p := s.progress()
	defer p.end()
	key := client.ObjectKeyFromObject(object)
	see := func(object client.Object) (bool, error) {
		text, is, err := done(object)
		p.say(text)
		return is || object == nil, err
	}
	for {
		seen := object.DeepCopyObject().(client.Object)
		err := s.api.Get(ctx, key, seen)
		if apierrors.IsNotFound(err) || err == nil && uid != "" && seen.GetUID() != uid {
			_, err := see(nil)
			return err
		}
		if err != nil {
			return err
		}
		if is, err := see(seen); is || err != nil {
			return err
		}
		w, err := s.api.Watch(ctx, list, &client.ListOptions{Namespace: key.Namespace, Raw: &metav1.ListOptions{
			FieldSelector: "metadata.name=" + key.Name, ResourceVersion: seen.GetResourceVersion(),
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

// follow shows what a watch tells until see has seen enough, or the watch ends.
func (p *progress) follow(ctx context.Context, w watch.Interface, see func(client.Object) (bool, error)) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-p.due:
			p.shown = true
			p.say(p.text)
		case event, isOpen := <-w.ResultChan():
			object, isObject := event.Object.(client.Object)
			switch {
			case !isOpen || event.Type == watch.Error:
				return false, nil // the API server ends watches now and then
			case event.Type == watch.Deleted:
				return see(nil)
			case isObject && event.Type != watch.Bookmark:
				if is, err := see(object); is || err != nil {
					return is, err
				}
			}
		}
	}
}

// awaitVM is await for a VirtualMachine.
func (s *session) awaitVM(ctx context.Context, vm *v1alpha1.VirtualMachine, done func(*v1alpha1.VirtualMachine) (bool, error)) error {
	return s.await(ctx, vm, &v1alpha1.VirtualMachineList{}, vm.UID, func(object client.Object) (string, bool, error) {
		seen, _ := object.(*v1alpha1.VirtualMachine) // nil once it is gone
		is, err := done(seen)
		return "waiting for " + vm.Name + ": " + situation(seen), is, err
	})
}

// situation is one line on how a VirtualMachine is.
func situation(vm *v1alpha1.VirtualMachine) string {
	if vm == nil {
		return "gone"
	}
	text := string(vm.Status.Phase)
	if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status != metav1.ConditionTrue {
		text += ": " + c.Reason + ": " + c.Message
	}
	return text
}

// runs tells whether the guest of the spec as it is runs, as far as the agent has reported.
func runs(vm *v1alpha1.VirtualMachine) bool {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionRunning)
	return c != nil && c.Status == metav1.ConditionTrue && vm.Status.ObservedGeneration >= vm.Generation && c.ObservedGeneration >= vm.Generation
}

var _ runtime.Object = &v1alpha1.VirtualMachine{}
