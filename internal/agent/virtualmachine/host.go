package virtualmachine

import (
	"context"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/qga"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

// Host is all that a Reconciler uses of the host that it runs on. Each part is what the package of internal/host of that
// name does, or a room of the agent beside this one; internal/host/hosttest has each in memory.
type Host struct {
	Libvirt interface {
		Domains
		DomainLogs
		Power
		Buttons
		LiveDisks
	}
	Backups   Backups
	Processes interface {
		Processes
		Helpers
	}
	Cgroups Cgroups
	Store   interface {
		Guests
		Disks
		ChangingDisks
		Seeds
		FirstStarts
	}
	Consoles interface {
		Consoles
		Displays
	}
	Network Network
	Volumes interface {
		Attachments
		Volumes
	}
	// OpenGuestAgent opens a guest agent's port, by QEMU's process and the number of the pseudo-terminal.
	OpenGuestAgent func(ctx context.Context, pid, pts int) (GuestAgent, error)
	// ReadFile reads a file, of limit bytes at most, in the mount namespace of a process.
	ReadFile func(pid int, path string, limit int64) ([]byte, error)

	// Push makes an image of a qcow2 disk, and pushes it; see image.Client.
	Push func(ctx context.Context, ref image.Reference, keys image.Keychain, disk *os.File, at time.Time, sent func(bytes, of int64)) (digest string, size int64, err error)

	Shims  Shims
	Images Images
	Facts  Facts
}

// Domains is what libvirt knows of guests.
type Domains interface {
	Domain(ctx context.Context, uuid string) (libvirtd.Domain, error)
	States(ctx context.Context) (map[string]libvirtd.Domain, error)
	SetMetadata(ctx context.Context, uuid, xml string) error
	KVMGroup() uint32
}

// DomainLogs are what libvirt logs of guests.
type DomainLogs interface {
	ExitCause(uuid, name string) (libvirtd.Exit, bool)
	RemoveLogs(name string) error
}

// Power starts, halts and ends guests by libvirt.
type Power interface {
	CreatePaused(ctx context.Context, xml string) error
	Resume(ctx context.Context, uuid string) error
	Suspend(ctx context.Context, uuid string) error
	Shutdown(ctx context.Context, uuid string) error
	Destroy(ctx context.Context, uuid string) error
}

// Buttons are those of the guest's machine.
type Buttons interface {
	Reset(ctx context.Context, uuid string) error
	InjectNMI(ctx context.Context, uuid string) error
}

// LiveDisks changes the disks of guests that run.
type LiveDisks interface {
	ResizeDisk(ctx context.Context, uuid, path string, size int64) error
	AttachDisk(ctx context.Context, uuid, xml string) error
	DetachDisk(ctx context.Context, uuid, alias string) error
	ChangeMedium(ctx context.Context, uuid, xml string, force bool) error
	SetDiskLimits(ctx context.Context, uuid, target string, l libvirtd.DiskLimits) error
}

// Backups are copies of disks that QEMU makes.
type Backups interface {
	BeginBackup(ctx context.Context, uuid, xml string) error
	BackupProgress(ctx context.Context, uuid string) (done, total uint64, goesOn bool, err error)
	AbortBackup(ctx context.Context, uuid string) error
}

// Attachments are the claims' volumes of guests on the host.
type Attachments interface {
	Attach(ctx context.Context, g volume.Guest, shim int, v volume.Volume) error
	Attached(uid string) ([]volume.Attached, error)
	Detach(ctx context.Context, uid string) error
	List() (uids []string, err error)
	Grant(ctx context.Context, group int) error
}

// Volumes is what becomes of the disks on them.
type Volumes interface {
	State(vm types.UID) ([]plan.Volume, error)
	Start(vm types.UID, disk string, r worker.Request, as sandbox.Job)
	Grown(uid string, v volume.Attached, size int64) error
}

// Processes are the QEMUs of the host, whatever libvirt says.
type Processes interface {
	Find(uuid string) ([]process.Process, error)
	PIDsByUUID() (map[string][]int, error)
	Terminate(p process.Process, within time.Duration) error
	Kill(p process.Process) error
	Watch(pid int, ended func()) (exists bool, err error)
}

// Helpers are what a placed QEMU needs besides its cgroup.
type Helpers interface {
	VhostThreads(pid int) ([]int, error)
	CopyOOMScore(from, to int) error
}

// Cgroups says where processes are, and moves them.
type Cgroups interface {
	Of(pid int) (cgroup.Group, error)
	Place(into cgroup.Group, pids ...int) error
	OOMKills(g cgroup.Group) (uint64, error)
	Uncharged(g cgroup.Group, pid int) (uint64, error)
}

// Guests are the directories of guests in the store.
type Guests interface {
	EnsureGuest(id store.Identity) (user int, err error)
	Hardware(uid string, first store.Hardware) (store.Hardware, error)
	Has(uid string) (bool, error)
	List() ([]store.Guest, error)
	Remove(uid string) error
}

// Disks are guests' disks and kernels in the store.
type Disks interface {
	Disks(uid string) ([]store.GuestDisk, error)
	Overlay(uid string, o store.Overlay) (store.GuestDisk, error)
	RecreateOverlay(uid string, o store.Overlay) (store.GuestDisk, error)
	PinKernel(uid string, c store.Content) error
	Image(c store.Content) (store.Image, error)
}

// ChangingDisks are what guests' disks in the store become while the guests live.
type ChangingDisks interface {
	SetMedium(uid, name, reference string, c store.Content) error
	RemoveDisk(uid, name string) error
	TakesDirectIO(path string) bool
	CreateCommit(uid string, size, needs int64, user int) (path string, err error)
	EndCommit(uid string, free func() error) error
}

// Seeds are guests' cloud-init data in the store.
type Seeds interface {
	CreateSeed(uid string, size int64, user int) (path string, err error)
	WriteSeed(uid string, b []byte) error
	WriteIgnition(uid string, config []byte, user int) (path string, err error)
	HasSeed(uid string) (bool, error)
	RemoveSeed(uid string) error
}

// FirstStarts are what guests start with, in the store.
type FirstStarts interface {
	RanWithoutSeed(uid string) (bool, error)
	RecordSeed(uid string, seed bool) error
	LinkTools(uid string, t store.Tools) (path string, err error)
}

// Consoles are the sockets of guests' serial consoles and ports.
type Consoles interface {
	Path(uid string, which console.Socket) string
	Exists(uid string) bool
	Connect(ctx context.Context, uid string, which console.Socket) (*os.File, error)
	Remove(uid string) error
	List() (uids []string, err error)
}

// Displays are the sockets of guests' displays.
type Displays interface {
	MakeDisplay(uid string, user int) (path string, err error)
	OpenDisplay(uid string, user int) (*os.File, error)
}

// GuestAgent is a conversation with a guest agent.
type GuestAgent interface {
	qga.Commander
	PowerDown(ctx context.Context) error
	Close() error
}

// Network connects guests with their berths' networks.
type Network interface {
	Connect(ctx context.Context, ns *os.File, c podnet.Config) (podnet.PodInterface, error)
	FindPodInterface(ctx context.Context, ns *os.File) (podnet.PodInterface, error)
	DHCPSocket(ctx context.Context, ns *os.File, tap string) (*os.File, error)
}

// Shims are the shims of this node's berths.
type Shims interface {
	// Connect returns the session with the shim of a VirtualMachine's berth. A nil one comes with the container's state;
	// one that is alive has an error nevertheless, such as shimproto.ErrAbsent, shimproto.ErrBroken or a
	// runtime.UnsupportedError.
	Connect(ctx context.Context, vm, pod types.UID) (Session, plan.Container, error)
}

// Session is the connection with the shim of one container.
type Session interface {
	Container
	Shim
}

// Container is the container that a shim lives in.
type Container interface {
	ContainerID() string
	PID() int // the shim's; it means the shim only while it is Alive
	Alive() bool
	Cgroup() cgroup.Group
	NetworkNamespace() (*os.File, error)
}

// Shim is what one can say to a shim, and what it said.
type Shim interface {
	// State is nil until the shim has spoken.
	State(devices []shimproto.Device) *plan.Shim
	Send(ctx context.Context, m shimproto.Message, files ...*os.File) error
	Notify(ctx context.Context, phase shimproto.Phase, reset time.Time) error
	HandOver(ctx context.Context, h shimproto.HandOver, open func(*shimproto.Device) (*os.File, error)) error
}

// Keys reads the credentials of a VirtualMachine. It is called only if they are needed.
type Keys = func() (image.Keychain, error)

// Images brings images to the node.
type Images interface {
	State(vm types.UID, i machine.Image, keys Keys) (plan.Image, error)
	Start(vm types.UID, namespace string, i machine.Image, keys Keys)
	Retain(vm types.UID, images []machine.Image)
}

// Facts are what is known of the host itself.
type Facts interface {
	Facts() (facts libvirtd.HostFacts, known bool, err error)
	IsOurs(ctx context.Context, uuid string) bool
	Wake() // has the host looked at
}
