package virtualmachine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// porterShim is the shim of a porter.
type porterShim struct {
	Session
	absent bool
	log    *os.File
	exit   *shimproto.Exit
}

func (s *porterShim) Connect(context.Context, types.UID, types.UID) (Session, plan.Container, error) {
	if s.absent {
		return nil, plan.ContainerUnknown, shimproto.ErrAbsent
	}
	return s, plan.ContainerUnknown, nil
}

func (s *porterShim) State([]shimproto.Device) *plan.Shim { return &plan.Shim{Exiting: s.exit != nil} }

func (s *porterShim) HandOver(_ context.Context, h shimproto.HandOver, open func(*shimproto.Device) (*os.File, error)) error {
	file, err := open(&h.Devices[0])
	if err != nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { // as the real one has its own descriptor
		if copied, err := unix.Dup(int(fd)); err == nil {
			s.log = os.NewFile(uintptr(copied), "log")
		}
	})
}

func (s *porterShim) Send(_ context.Context, m shimproto.Message, _ ...*os.File) error {
	exit := m.(shimproto.Exit) //nolint:errcheck,forcetypeassert // it is sent nothing else
	s.exit = &exit
	return nil
}

// read is what the porter's log has more, and whether that is all.
func (s *porterShim) read(t *testing.T) (text string, ended bool) {
	t.Helper()
	buf := make([]byte, 1000)
	n, err := unix.Read(int(s.log.Fd()), buf)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return string(buf[:max(n, 0)]), n == 0
}

// porterPulls are the node's.
type porterPulls struct {
	state    plan.Image
	begun    []machine.Image
	released bool
}

func (p *porterPulls) State(types.UID, machine.Image, Keys) (plan.Image, error) { return p.state, nil }

func (p *porterPulls) Start(_ types.UID, _ string, i machine.Image, _ Keys) {
	p.begun = append(p.begun, i)
}

func (p *porterPulls) Retain(types.UID, []machine.Image) { p.released = true }

func newPorter(t *testing.T) (*Reconciler, *corev1.Pod, *porterShim, *porterPulls) {
	t.Helper()
	image := &v1alpha1.VirtualMachineImage{}
	image.Namespace, image.Name, image.UID = "default", "debian", "image-uid"
	image.Spec.Image = "registry/debian:12"
	pod, err := berth.Porter(image, "node-1", "", berth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pod.UID, pod.Spec.NodeName = "porter-uid", "node-1"
	shim, pulls := &porterShim{}, &porterPulls{state: plan.Image{State: plan.ImagePulling, Progress: "7 MiB"}}
	return &Reconciler{Options: Options{Host: Host{Shims: shim, Images: pulls, Facts: facts{}}}}, pod, shim, pulls
}

// carry has a porter looked at once, which fails nobody.
func carry(t *testing.T, r *Reconciler, pod *corev1.Pod) (again bool) {
	t.Helper()
	wake, err := r.carry(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return wake > 0
}

func TestPorterBringsAnImage(t *testing.T) {
	r, pod, shim, pulls := newPorter(t)
	shim.absent = true
	if !carry(t, r, pod) || len(pulls.begun) > 0 {
		t.Fatal("without a shim it is not waited for one")
	}
	shim.absent = false
	pulls.state.State = plan.ImageReady // by another name, or of yesterday: the registry is asked all the same
	if !carry(t, r, pod) || len(pulls.begun) != 1 || shim.exit != nil {
		t.Fatalf("%d pulls have begun, and the porter ended with %+v", len(pulls.begun), shim.exit)
	}
	if got, want := pulls.begun[0], (machine.Image{For: pod.Name, Reference: "registry/debian:12", Named: "image-uid"}); got != want {
		t.Errorf("pulled %+v, want %+v", got, want)
	}
	pulls.state.State = plan.ImagePulling
	if !carry(t, r, pod) {
		t.Error("nobody looks at the pull again")
	}
	if text, _ := shim.read(t); text != "pulling registry/debian:12: 7 MiB\r\n" {
		t.Errorf("the porter's log has %q", text)
	}
	pulls.state = plan.Image{State: plan.ImageReady, Digest: digest}
	if carry(t, r, pod); shim.exit == nil || shim.exit.Code != 0 || shim.exit.TerminationMessage() != digest {
		t.Errorf("the porter ended with %+v", shim.exit)
	}
	if _, ended := shim.read(t); !ended {
		t.Error("its shim waits for the end of the log")
	}
	if carry(t, r, pod); len(pulls.begun) != 1 {
		t.Error("a porter that ends began once more")
	}
}

func TestPorterFails(t *testing.T) {
	r, pod, shim, pulls := newPorter(t)
	carry(t, r, pod)
	pulls.state = plan.Image{State: plan.ImageFailed, Err: fault.NewUser(v1alpha1.ReasonImageUnauthorized, errors.New("401: who are you?"))}
	if carry(t, r, pod); shim.exit == nil || shim.exit.Code != 1 || shim.exit.TerminationMessage() != "ImageUnauthorized: 401: who are you?" {
		t.Errorf("the porter ended with %+v", shim.exit)
	}
}

func TestPorterIsDeleted(t *testing.T) {
	r, pod, shim, pulls := newPorter(t)
	carry(t, r, pod)
	pod.Status.Phase = corev1.PodFailed
	if carry(t, r, pod); !pulls.released {
		t.Error("its pull goes on")
	}
	if _, ended := shim.read(t); !ended {
		t.Error("its log stays open")
	}
}

// noPods is a cache that has none.
type noPods struct{ client.Reader }

func (noPods) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func TestPorterIsDeletedByForce(t *testing.T) {
	r, pod, shim, _ := newPorter(t)
	carry(t, r, pod)
	r.Cache = noPods{}
	if p, err := r.porter(t.Context(), pod.UID); p != nil || err != nil {
		t.Fatalf("%v, %v", p, err)
	}
	if _, ended := shim.read(t); !ended {
		t.Error("its log stays open")
	}
}

func TestPorterOfANewerOperator(t *testing.T) {
	r, pod, shim, pulls := newPorter(t)
	raw, err := json.Marshal(map[string]any{"version": 3, "image": "registry/debian:12"})
	if err != nil {
		t.Fatal(err)
	}
	pod.Annotations[berth.AnnotationErrand] = string(raw)
	if carry(t, r, pod); shim.exit == nil || shim.exit.Code != 1 || len(pulls.begun) > 0 {
		t.Errorf("the porter ended with %+v, and %d pulls have begun", shim.exit, len(pulls.begun))
	}
}
