package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	shimlink "github.com/berth-dev/berth/internal/berth/link"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
)

// stepTimeout bounds a step. Starting QEMU is the longest, on a busy host.
const stepTimeout = 2 * time.Minute

// maxUserData bounds user data, in bytes: that of any Secret.
const maxUserData = 1 << 20

func (a *Agent) do(ctx context.Context, g *guest, step plan.Step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	uid := string(g.uid)
	switch s := step.(type) {
	case plan.Pull:
		a.pull(g, s.Bases)
		return nil
	case plan.MakeDisks:
		return a.makeDisks(g)
	case plan.Create:
		return a.create(ctx, g)
	case plan.Place:
		return a.place(g)
	case plan.Plug:
		return a.plug(ctx, g)
	case plan.Seed:
		return a.writeSeed(g)
	case plan.Attach:
		return a.attach(ctx, g)
	case plan.Resume:
		if err := a.prove(g); err != nil {
			return err
		}
		return a.libvirt.Resume(ctx, uid)
	case plan.Suspend:
		return a.libvirt.Suspend(ctx, uid)
	case plan.Tell:
		phase := shimlink.PhaseRunning
		if s.Paused {
			phase = shimlink.PhasePaused
		}
		return g.link.send(ctx, shimlink.Running{Phase: phase})
	case plan.Shutdown:
		return a.shutdown(ctx, g)
	case plan.Destroy:
		return a.libvirt.Destroy(ctx, uid)
	case plan.Kill:
		return a.kill(uid)
	case plan.Exit:
		s.End.Told = a.now()
		a.hints.ended(g.uid, s.End)
		err := g.link.send(ctx, shimlink.Exit{Code: int(s.End.Code), Reason: string(s.End.Reason), Message: s.End.Message})
		if err == nil && s.End.Reason != v1alpha1.ReasonNotRunning {
			a.meters.exited(s.End.Reason)
		}
		return err
	case plan.Clear:
		return a.clear(uid)
	case plan.RemoveDisks:
		a.pulls.forget(g.uid)
		return a.store.Remove(uid)
	}
	return fmt.Errorf("unknown step %T", step)
}

func (a *Agent) domainName(g *guest) string { return berth.DomainName(g.VM.Namespace, g.VM.Name) }

func (a *Agent) consolePath(uid string) string {
	return filepath.Join(a.RunDir, "consoles", uid+".sock")
}

// claim gives the guest its directory and its user.
func (a *Agent) claim(g *guest) (user int, err error) {
	return a.store.Claim(store.Identity{Namespace: g.VM.Namespace, Name: g.VM.Name, UID: string(g.uid)})
}

func (a *Agent) makeDisks(g *guest) error {
	user, err := a.claim(g)
	if err != nil {
		return fmt.Errorf("making the guest's directory: %w", err)
	}
	bases := map[string]base{}
	for _, b := range basesOf(g.VM) {
		bases[b.name] = b
	}
	made, err := a.store.Disks(string(g.uid))
	if err != nil {
		return fmt.Errorf("reading disks: %w", err)
	}
	exists := map[string]bool{}
	for _, d := range made {
		exists[d.Name] = true
	}
	if k, ok := bases[plan.Kernel]; ok {
		content, err := a.available(g, k)
		if err != nil {
			return err
		}
		if err := a.store.Keep(string(g.uid), content); err != nil {
			return fmt.Errorf("keeping the kernel: %w", err)
		}
	}
	for _, d := range g.VM.Spec.Disks {
		if exists[d.Name] && !d.Ephemeral {
			continue
		}
		content, err := a.available(g, bases[d.Name])
		if err != nil {
			return err
		}
		o := store.Overlay{Name: d.Name, Base: content, User: user}
		if d.Size != nil {
			o.Size = d.Size.Value()
		}
		make := a.store.Overlay
		if d.Ephemeral {
			make = a.store.RecreateOverlay
		}
		if _, err := make(string(g.uid), o); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// create has libvirt start QEMU, its vCPUs halted, once it is proven that there is none.
func (a *Agent) create(ctx context.Context, g *guest) error {
	uid := string(g.uid)
	found, err := process.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	if len(found) > 0 {
		return fault.ByTime(v1alpha1.ReasonStarting, fmt.Errorf("process %d of this guest is still there", found[0].PID))
	}
	user, err := a.claim(g)
	if err != nil {
		return fmt.Errorf("making the guest's directory: %w", err)
	}
	machine, err := a.machine(g, user)
	if err != nil {
		return err
	}
	if needsSeed(g.VM) {
		if machine.Seed, err = a.store.CreateSeed(uid, seed.Size, user); err != nil {
			return fmt.Errorf("making the seed: %w", err)
		}
	}
	doc, err := domain.XML(machine)
	if err != nil {
		return fmt.Errorf("describing the domain: %w", err)
	}
	a.hints.begin(g.uid)
	return a.libvirt.CreatePaused(ctx, doc)
}

// machine describes the guest's domain.
func (a *Agent) machine(g *guest, user int) (domain.Guest, error) {
	vm := g.VM
	m := domain.Guest{
		UUID: string(g.uid), Name: a.domainName(g),
		Identity:     domain.Identity{Namespace: vm.Namespace, Name: vm.Name, VM: string(g.uid), Berth: string(g.Berth.UID)},
		Acceleration: a.Acceleration,
		Partition:    a.partition(g),
		CPU:          domain.CPU{Sockets: int(vm.Spec.CPU.Sockets), Cores: int(vm.Spec.CPU.Cores), Threads: int(vm.Spec.CPU.Threads), Model: vm.Spec.CPU.Model},
		Memory:       vm.Spec.Memory.Size.Value(),
		Console:      a.consolePath(string(g.uid)),
		UID:          uint32(user), //nolint:gosec // a uid
		GID:          a.qemuGroup(user),
	}
	if a.Acceleration == v1alpha1.AccelerationEmulation {
		m.TranslationCache = berth.EmulationCache
	}
	if len(vm.Spec.Networks) > 0 {
		n := vm.Spec.Networks[0].Name
		m.NIC = &domain.NIC{Tap: berth.TapName(g.uid, n), MAC: berth.MAC(g.uid, n)}
	}
	made, err := a.store.Disks(string(g.uid))
	if err != nil {
		return m, fmt.Errorf("reading disks: %w", err)
	}
	for _, want := range vm.Spec.Disks {
		for _, d := range made {
			if d.Name == want.Name {
				m.Disks = append(m.Disks, domain.Disk{Name: d.Name, Path: d.Path, Backing: []domain.Backing{
					{Path: d.Base.DiskPath(), Format: domain.Format(d.Base.Format)},
				}})
			}
		}
	}
	if len(m.Disks) != len(vm.Spec.Disks) {
		return m, fmt.Errorf("%d of %d disks are there", len(m.Disks), len(vm.Spec.Disks))
	}
	for _, b := range basesOf(vm) {
		if b.name != plan.Kernel {
			continue
		}
		content, err := a.available(g, b)
		if err != nil {
			return m, err
		}
		kernel, err := a.store.Image(content)
		if err != nil {
			return m, fmt.Errorf("kernel image %s: %w", b.ref, err)
		}
		m.Kernel = &domain.Kernel{Path: kernel.KernelPath(), Initrd: kernel.InitrdPath(), CommandLine: vm.Spec.Kernel.CommandLine}
	}
	return m, nil
}

// place moves QEMU and what works for it into the container's cgroup.
func (a *Agent) place(g *guest) error {
	found, err := process.Find(string(g.uid))
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		helpers, err := process.Helpers(q.PID)
		if err != nil {
			return fmt.Errorf("looking for QEMU's helpers: %w", err)
		}
		if err := a.cgroups.Place(g.link.group, append([]int{q.PID}, helpers...)...); err != nil {
			return fault.ByTime(v1alpha1.ReasonPlacementFailed, fmt.Errorf("placing QEMU into its berth: %w", err))
		}
		if err := a.setOOMScore(g, q.PID); err != nil {
			return fmt.Errorf("setting QEMU's oom_score_adj: %w", err)
		}
	}
	return nil
}

// prove makes sure that there is exactly one QEMU of the guest, and that it is in the container of a living shim.
func (a *Agent) prove(g *guest) error {
	var h plan.Have
	if err := observeProcess(g, &h); err != nil {
		return err
	}
	if h.Process != plan.ProcessPlaced || !g.link.shim.Alive() {
		return fault.ByTime(v1alpha1.ReasonPlacementFailed, errors.New("QEMU is not where it must be before it may run"))
	}
	return nil
}

// wiring is how the guest's one network interface is plugged in.
func (a *Agent) wiring(g *guest, ns *os.File) podnet.Wiring {
	n := g.VM.Spec.Networks[0].Name
	gateway := a.GuestSubnet.Masked().Addr().Next()
	return podnet.Wiring{
		NetNS: ns, Tap: berth.TapName(g.uid, n), MAC: berth.MAC(g.uid, n),
		Gateway: gateway, Guest: netip.PrefixFrom(gateway.Next(), a.GuestSubnet.Bits()),
	}
}

// namespace opens the berth's network namespace; the shim that it is read from was alive after.
func (a *Agent) namespace(g *guest) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", g.link.shim.PID()))
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, fmt.Errorf("opening the berth's network namespace: %w", err))
	}
	if !g.link.shim.Alive() {
		_ = ns.Close()
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, errors.New("the berth's container has ended"))
	}
	return ns, nil
}

func (a *Agent) plug(ctx context.Context, g *guest) error {
	if len(g.VM.Spec.Networks) == 0 {
		return nil
	}
	ns, err := a.namespace(g)
	if err != nil {
		return err
	}
	defer ns.Close()
	_, err = podnet.Plug(ctx, a.wiring(g, ns))
	return err
}

func needsSeed(vm *v1alpha1.VirtualMachine) bool {
	return vm.Spec.CloudInit != nil || len(vm.Spec.SSHAuthorizedKeys) > 0
}

// writeSeed writes the first-boot data into the file that QEMU has open. A
// Secret can be read only now that the container has it mounted.
func (a *Agent) writeSeed(g *guest) error {
	if !needsSeed(g.VM) {
		return nil
	}
	s := seed.Seed{InstanceID: string(g.uid), Hostname: g.VM.Name, SSHAuthorizedKeys: g.VM.Spec.SSHAuthorizedKeys}
	if c := g.VM.Spec.CloudInit; c != nil {
		if c.UserData != nil {
			s.UserData = []byte(*c.UserData)
		}
		if c.NetworkData != nil {
			s.NetworkConfig = []byte(*c.NetworkData)
		}
		if ref := c.UserDataSecretRef; ref != nil {
			data, err := volume.ReadFile(g.link.shim.PID(), berth.UserDataPath, maxUserData)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fault.ByUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
					"Secret %s/%s does not exist or has no key %s: create it; kubelet shows it to the guest within two minutes", g.VM.Namespace, ref.Name, ref.Key))
			case errors.Is(err, volume.ErrTooLarge):
				return fault.ByUser(v1alpha1.ReasonSeedTooLarge, fmt.Errorf("Secret %s/%s: %w", g.VM.Namespace, ref.Name, err))
			case err != nil:
				return fmt.Errorf("reading user data: %w", err)
			}
			s.UserData = data
		}
	}
	image, err := seed.Build(s)
	if err != nil {
		return err
	}
	return a.store.WriteSeed(string(g.uid), image)
}

// attach hands the guest's console, and the socket for its DHCP, to the shim.
func (a *Agent) attach(ctx context.Context, g *guest) error {
	console, err := (&net.Dialer{}).DialContext(ctx, "unix", a.consolePath(string(g.uid)))
	if err != nil {
		return fault.ByTime(v1alpha1.ReasonStarting, fmt.Errorf("connecting to the console: %w", err))
	}
	defer console.Close()
	socket, err := console.(*net.UnixConn).File()
	if err != nil {
		return fmt.Errorf("taking the console's socket: %w", err)
	}
	defer socket.Close()
	message, files := shimlink.Attach{Run: g.link.container}, []*os.File{socket}
	if len(g.VM.Spec.Networks) > 0 {
		nic, dhcp, err := a.lease(ctx, g)
		if err != nil {
			return err
		}
		defer dhcp.Close()
		message.NIC, files = nic, append(files, dhcp)
	}
	return g.link.send(ctx, message, files...)
}

func (a *Agent) lease(ctx context.Context, g *guest) (*shimlink.NIC, *os.File, error) {
	ns, err := a.namespace(g)
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	uplink, err := podnet.FindUplink(ctx, ns)
	if err != nil {
		return nil, nil, err
	}
	w := a.wiring(g, ns)
	socket, err := podnet.DHCPSocket(ctx, ns, w.Tap)
	if err != nil {
		return nil, nil, err
	}
	return &shimlink.NIC{MAC: shimlink.MAC(w.MAC), Address: w.Guest, Router: w.Gateway, MTU: uplink.MTU, Hostname: g.VM.Name}, socket, nil
}

// shutdown asks by every way there is: a guest listens to one of them, or to none. An agent that is ending, since the
// guest does, refuses: that is no failure.
func (a *Agent) shutdown(ctx context.Context, g *guest) error {
	err := a.libvirt.Shutdown(ctx, string(g.uid), libvirtd.ByACPI)
	if !g.agentConnected {
		return err
	}
	agentErr := a.libvirt.Shutdown(ctx, string(g.uid), libvirtd.ByGuestAgent)
	if err != nil && agentErr != nil {
		return errors.Join(err, agentErr)
	}
	return nil
}

// kill ends every QEMU of the guest that libvirt did not end.
func (a *Agent) kill(uid string) error {
	found, err := process.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		if err := q.Kill(); err != nil {
			return fmt.Errorf("killing process %d: %w", q.PID, err)
		}
	}
	return nil
}

// clear removes what a run of the guest left; its disks stay.
func (a *Agent) clear(uid string) error {
	if err := os.Remove(a.consolePath(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the console's socket: %w", err)
	}
	return a.store.RemoveSeed(uid)
}
