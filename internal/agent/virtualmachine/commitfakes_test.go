package virtualmachine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
)

// committing is a node on which disks become images, in a bubble of synctest: nothing happens in the background but while the
// test waits.
type committing struct {
	t       *testing.T
	life    context.Context //nolint:containedctx // the agents'
	n       *node
	copies  string // the directory of the copies
	porters map[types.UID]*commitPorter
	asked   []string // of the guest agent, about its guest's writes
	pushed  []string // what the registry got
	// pushes is what the registry does; nil lets it take all.
	pushes func(ctx context.Context, sent func(bytes, of int64)) error
	// touch is called before whatever a commit asks of the host.
	touch func()

	mu    sync.Mutex
	woken map[types.UID]bool
}

// commitPorter is a porter with its container.
type commitPorter struct {
	porterShim
	*hosttest.Container
	pod *corev1.Pod
}

// inBubble tests disks that become images.
func inBubble(t *testing.T, world func(*testing.T, ...func(*v1alpha1.VirtualMachine)) (*world, *node), test func(*committing), changes ...func(*v1alpha1.VirtualMachine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		_, n := world(t, changes...)
		life, end := context.WithCancel(context.Background())
		defer end() // for a test that fails amid a commit
		c := &committing{t: t, life: life, n: n, copies: t.TempDir(), porters: map[types.UID]*commitPorter{}, touch: func() {}, woken: map[types.UID]bool{}}
		n.host.CopiesIn(c.copies)
		c.equip()
		test(c)
	})
}

// stopped is a world whose guest has run, and is stopped.
func stopped(t *testing.T, changes ...func(*v1alpha1.VirtualMachine)) (*world, *node) {
	t.Helper()
	w, n := running(t, changes...)
	w.cluster.vm.Spec.State = v1alpha1.StateStopped
	w.operate(n.name)
	n.host.PowerOff(string(vmUID))
	n.sync()
	w.operate(n.name)
	n.sync()
	if w.cluster.pod != nil || len(n.host.QEMUs(string(vmUID))) > 0 || n.host.Consoles.Exists(string(vmUID)) {
		t.Fatalf("the guest is not stopped: %s", w)
	}
	return w, n
}

// equip gives the node's agent what it has more here.
func (c *committing) equip() {
	r, now := c.n.agent, c.n.world.now
	r.Now, r.life = func() time.Time { return now }, c.life // it is asked in the background, too
	r.Cache, r.Enqueue, r.Host.Shims, r.Host.Push = commitCache{reader{c.n}, c}, c.wake, c, c.push
	hands := hands{c}
	r.Host.Libvirt, r.Host.Store = watchedLibvirt{libvirt{c.n.host.Libvirt, c.n}, hands}, watchedStore{disk{c.n.host.Store, c.n}, hands}
	r.Host.Processes, r.Host.Cgroups = watchedProcesses{c.n.host.Processes, hands}, watchedCgroups{c.n.host.Cgroups, hands}
	r.Host.OpenGuestAgent = func(_ context.Context, pid, pts int) (GuestAgent, error) {
		c.touch()
		agent, err := c.n.host.OpenGuestAgent(pid, pts)
		return watchedAgent{agent, hands}, err
	}
}

// anotherAgent is the one after an agent that was killed.
func (c *committing) anotherAgent() {
	c.touch = func() {}
	c.n.startAgent()
	c.n.silent = false
	c.equip()
}

func (c *committing) wake(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.woken[uid] = true
}

// Connect is that of Shims.
func (c *committing) Connect(ctx context.Context, vm, pod types.UID) (Session, plan.Container, error) {
	if p := c.porters[pod]; p != nil {
		return p, plan.ContainerAlive, nil
	}
	return c.n.Connect(ctx, vm, pod)
}

func (c *committing) push(ctx context.Context, ref image.Reference, _ image.Keychain, disk *os.File, at time.Time, sent func(bytes, of int64)) (string, int64, error) {
	c.touch()
	content, err := io.ReadAll(disk)
	if err == nil && c.pushes != nil {
		err = c.pushes(ctx, sent)
	}
	if err != nil {
		return "", 0, err
	}
	if at.IsZero() || ref.Repository != "shop/web" || ref.Tag != "1" {
		err = fmt.Errorf("%v of %v is pushed", ref, at)
	}
	c.pushed = append(c.pushed, string(content))
	return digest, int64(len(content)), err
}

// commitCache has porters, too.
type commitCache struct {
	reader
	c *committing
}

func (r commitCache) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	pods, is := list.(*corev1.PodList)
	if !is {
		return r.reader.List(ctx, list, options...)
	}
	var o client.ListOptions
	for _, option := range options {
		option.ApplyToList(&o)
	}
	if by := o.FieldSelector.Requirements()[0]; by.Field == IndexUID {
		if p := r.c.porters[types.UID(by.Value)]; p != nil {
			pods.Items = append(pods.Items, *p.pod.DeepCopy())
			return nil
		}
	}
	return r.reader.List(ctx, list, options...)
}

// porter begins a commit, of the root disk if change does not say otherwise.
func (c *committing) porter(change func(*v1alpha1.VirtualMachineCommitSpec)) *commitPorter {
	c.t.Helper()
	commit := &v1alpha1.VirtualMachineCommit{}
	commit.Namespace, commit.Name, commit.UID = "default", fmt.Sprint("commit-", len(c.porters)), "commit-uid"
	commit.Spec = v1alpha1.VirtualMachineCommitSpec{VirtualMachineName: "web", DiskName: "root", Image: "registry.example.org/shop/web:1", Quiesce: v1alpha1.QuiesceIfPossible}
	if change != nil {
		change(&commit.Spec)
	}
	pod, err := berth.CommitPorter(commit, vmUID, c.n.name, berth.Options{ShimImage: "shim"})
	if err != nil {
		c.t.Fatal(err)
	}
	pod.UID, pod.Spec.NodeName = types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", len(c.porters))), c.n.name
	id, _ := c.n.host.StartContainer(string(pod.UID), berth.Container)
	p := &commitPorter{Container: c.n.host.Container(id), pod: pod}
	c.porters[pod.UID] = p
	c.look(p.pod.UID)
	synctest.Wait()
	return p
}

func quiesce(q v1alpha1.Quiesce) func(*v1alpha1.VirtualMachineCommitSpec) {
	return func(s *v1alpha1.VirtualMachineCommitSpec) { s.Quiesce = q }
}

func diskOf(name string) func(*v1alpha1.VirtualMachineCommitSpec) {
	return func(s *v1alpha1.VirtualMachineCommitSpec) { s.DiskName = name }
}

// look has the agent look at a porter, or a guest.
func (c *committing) look(uid types.UID) {
	c.t.Helper()
	if uid == vmUID {
		c.n.sync()
	} else if _, err := c.n.agent.Reconcile(c.t.Context(), uid); err != nil {
		c.t.Fatal(err)
	}
}

// pass lets a second pass, and has the agent look at those who were woken, and at the porters.
func (c *committing) pass() {
	c.t.Helper()
	time.Sleep(backupPoll)
	synctest.Wait()
	c.mu.Lock()
	woken := c.woken
	c.woken = map[types.UID]bool{}
	c.mu.Unlock()
	for uid := range c.porters {
		woken[uid] = true
	}
	for uid := range woken {
		c.look(uid)
	}
	synctest.Wait()
}

// until lets time pass until a claim is true.
func (c *committing) until(what string, claim func() bool) {
	c.t.Helper()
	for range 100 {
		if claim() {
			return
		}
		c.pass()
	}
	c.t.Fatalf("it is waited for %s", what)
}

// copying waits until a QEMU copies the disk.
func (c *committing) copying(uuid string) (b hosttest.Backup) {
	c.t.Helper()
	c.until("a backup of "+uuid, func() (goesOn bool) {
		b, goesOn = c.n.host.Backup(uuid)
		return goesOn
	})
	return b
}

// finish waits for the end of a porter, which kubelet brings about and the agent hears of.
func (c *committing) finish(p *commitPorter) (code int, message string) {
	c.t.Helper()
	c.until("the porter's end", func() bool { return p.exit != nil })
	p.pod.Status.Phase = corev1.PodSucceeded
	if p.exit.Code != 0 {
		p.pod.Status.Phase = corev1.PodFailed
	}
	c.n.host.EndContainer(p.ContainerID())
	c.look(p.pod.UID)
	c.pass()
	return p.exit.Code, p.exit.TerminationMessage()
}

// made is what has become of a porter's commit, which is well.
func (c *committing) made(p *commitPorter) (made v1alpha1.VirtualMachineCommitStatus) {
	c.t.Helper()
	code, message := c.finish(p)
	if err := json.Unmarshal([]byte(message), &made); err != nil || code != 0 {
		c.t.Fatalf("the porter ended with code %d: %s", code, message)
	}
	got := c.pushed[len(c.pushed)-1]
	if made.Digest != digest || made.Size.Value() != int64(len(got)) || made.TakenAt.IsZero() || made.TakenAt.After(time.Now()) {
		c.t.Errorf("it tells %+v", made)
	}
	if !strings.HasPrefix(got, "QFI\xfb") || !strings.HasSuffix(got, "/root.qcow2") {
		c.t.Errorf("the registry got %.4q … %.60q", got, got[max(0, len(got)-60):])
	}
	return made
}

// failed is why a porter's commit did not become an image.
func (c *committing) failed(p *commitPorter, want v1alpha1.Reason, says string) {
	c.t.Helper()
	code, message := c.finish(p)
	if code != 1 || !strings.HasPrefix(message, string(want)+": ") || !strings.Contains(message, says) {
		c.t.Errorf("the porter ended with code %d: %s, want %s, and %q", code, message, want, says)
	}
	if len(c.pushed) > 0 {
		c.t.Errorf("the registry got %q", c.pushed)
	}
}

// delete has a porter deleted, as by the deletion of its commit, and its container ended.
func (c *committing) delete(p *commitPorter) {
	delete(c.porters, p.pod.UID)
	c.n.host.EndContainer(p.ContainerID())
	c.look(p.pod.UID)
	synctest.Wait()
}

// clean is what has to be true once no commit goes on.
func (c *committing) clean() {
	c.t.Helper()
	h, uid, reader := c.n.host, string(vmUID), readerOf(vmUID)
	_, copied := h.Backup(uid)
	files, err := os.ReadDir(c.copies)
	if copied || h.Frozen(uid) || h.HasCopy(uid) || len(files) > 0 || err != nil {
		c.t.Errorf("a backup goes on: %t, the guest is frozen: %t, a copy is left: %t, %v, %v", copied, h.Frozen(uid), h.HasCopy(uid), files, err)
	}
	if d, err := h.Libvirt.Domain(c.t.Context(), reader); d.Exists || err != nil || len(h.QEMUs(reader)) > 0 {
		c.t.Errorf("there is a reader: %+v, %v", d, err)
	}
	for uid := range c.n.agent.commits.Range {
		c.t.Errorf("a commit of %s goes on", uid)
	}
	if b := h.Breaches(); len(b) > 0 {
		c.t.Error(b)
	}
}

// connect has a guest agent answer, with an eye on what it is asked about the guest's writes.
func (c *committing) connect(answer func(command string) (string, error)) {
	c.n.host.ConnectAgent(string(vmUID), func(command string) (string, error) {
		if strings.Contains(command, "fsfreeze") {
			c.asked = append(c.asked, command)
		}
		return answer(command)
	})
}

func refusing(string) (string, error) {
	return `{"error":{"class":"CommandNotFound","desc":"disabled"}}`, nil
}

func (c *committing) freezing() func(string) (string, error) {
	return c.n.host.FreezingAgent(string(vmUID))
}
func (c *committing) refusing() func(string) (string, error) { return refusing }

func (c *committing) empty() func(string) (string, error) {
	return func(string) (string, error) { return `{"return":0}`, nil }
}

// slowAgent is a guest agent that answers to nothing before it is to, but has its guest hold its writes as late as it has
// given up to say so.
type slowAgent struct {
	watchedAgent
	*committing
	answers func(command string) bool
}

func (a slowAgent) AgentCommand(ctx context.Context, command string) (string, error) {
	if a.answers(command) {
		return a.watchedAgent.AgentCommand(ctx, command)
	}
	<-ctx.Done()
	if strings.Contains(command, "freeze-freeze") {
		a.n.host.Freeze(string(vmUID), true)
	}
	return "", fault.NewTransient(v1alpha1.ReasonGuestAgentNotConnected, ctx.Err())
}

func (slowAgent) Close() error                    { return nil }
func (slowAgent) PowerDown(context.Context) error { return nil }

// slow has the guest's agent be one.
func (c *committing) slow(answers func(command string) bool) {
	c.connect(c.freezing())
	open := c.n.agent.Host.OpenGuestAgent
	c.n.agent.Host.OpenGuestAgent = func(ctx context.Context, pid, pts int) (GuestAgent, error) {
		agent, err := open(ctx, pid, pts)
		if err != nil {
			return nil, err
		}
		return slowAgent{agent.(watchedAgent), c, answers}, nil //nolint:errcheck,forcetypeassert // equip's
	}
}

// hands are those by which a commit acts, with an eye on them.
type hands struct{ *committing }

type watchedLibvirt struct {
	libvirt
	hands
}

func (l watchedLibvirt) Domain(ctx context.Context, id string) (libvirtd.Domain, error) {
	l.touch()
	return l.libvirt.Domain(ctx, id)
}

func (l watchedLibvirt) CreatePaused(ctx context.Context, xml string) error {
	l.touch()
	return l.libvirt.CreatePaused(ctx, xml)
}

func (l watchedLibvirt) Destroy(ctx context.Context, id string) error {
	l.touch()
	return l.libvirt.Destroy(ctx, id)
}

func (l watchedLibvirt) BeginBackup(ctx context.Context, id, xml string) error {
	l.touch()
	return l.libvirt.BeginBackup(ctx, id, xml)
}

func (l watchedLibvirt) BackupProgress(ctx context.Context, id string) (done, total uint64, goesOn bool, err error) {
	l.touch()
	return l.libvirt.BackupProgress(ctx, id)
}

func (l watchedLibvirt) AbortBackup(ctx context.Context, id string) error {
	l.touch()
	return l.libvirt.AbortBackup(ctx, id)
}

type watchedStore struct {
	disk
	hands
}

func (s watchedStore) EnsureGuest(id store.Identity) (int, error) {
	s.touch()
	return s.disk.EnsureGuest(id)
}

func (s watchedStore) CreateCommit(uid string, size, needs int64, user int) (string, error) {
	s.touch()
	return s.disk.CreateCommit(uid, size, needs, user)
}

func (s watchedStore) EndCommit(uid string, free func() error) error {
	s.touch()
	return s.disk.EndCommit(uid, free)
}

type watchedProcesses struct {
	*hosttest.Processes
	hands
}

func (p watchedProcesses) Find(id string) ([]process.Process, error) {
	p.touch()
	return p.Processes.Find(id)
}

type watchedCgroups struct {
	*hosttest.Cgroups
	hands
}

func (c watchedCgroups) Place(into cgroup.Group, pids ...int) error {
	c.touch()
	return c.Cgroups.Place(into, pids...)
}

type watchedAgent struct {
	*hosttest.GuestAgent
	hands
}

func (a watchedAgent) AgentCommand(ctx context.Context, command string) (string, error) {
	a.touch()
	return a.GuestAgent.AgentCommand(ctx, command)
}
