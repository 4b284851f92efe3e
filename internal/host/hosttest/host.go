package hosttest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// Host is one host. Its parts and its own methods may be used from many goroutines.
type Host struct {
	Libvirt   *Libvirt
	Processes *Processes
	Cgroups   *Cgroups
	Store     *Store
	Volumes   *Volumes
	Consoles  *Consoles
	Network   *Network
	Runtime   *Runtime

	mu       sync.Mutex
	ended    []func() // to be called without the lock
	breaches []string

	lastPID   int
	processes map[int]*proc
	qemus     map[string][]*proc // those that live, by UUID
	sockets   map[string]*proc   // by path; their QEMU may have ended
	displays  map[string]bool    // directories of displays, by guest
	taps      map[string]string  // those of living QEMUs, by name: the pod that each is in, "" on the host

	libvirtDown bool
	lastID      int32
	domains     map[string]*domain // by UUID
	stops       map[string]libvirtd.Exit
	answers     map[string]libvirtd.Domain
	logs        map[string]bool // of domains, by name

	runtimeDown   bool
	lastContainer int
	pods          map[string]*pod       // by UID
	containers    map[string]*container // by ID

	images map[store.Content]store.Image
	guests map[string]*guest // by UID
	seeds  map[string]*seed  // by UID
	claims int               // that there have been
	copies string            // the directory of copies of disks
	room   int64             // for them, in bytes; 0 is no limit

	attached map[string]map[string]*attachment // by guest and disk
	granted  map[int]bool                      // groups
}

// New is a host without guests, containers and images, on which everything works.
func New() *Host {
	h := &Host{
		lastPID:   1000,
		processes: map[int]*proc{}, qemus: map[string][]*proc{}, sockets: map[string]*proc{}, displays: map[string]bool{}, taps: map[string]string{},
		domains: map[string]*domain{}, stops: map[string]libvirtd.Exit{}, answers: map[string]libvirtd.Domain{}, logs: map[string]bool{},
		pods: map[string]*pod{}, containers: map[string]*container{},
		images: map[store.Content]store.Image{}, guests: map[string]*guest{}, seeds: map[string]*seed{},
		attached: map[string]map[string]*attachment{}, granted: map[int]bool{},
	}
	h.Libvirt, h.Processes, h.Cgroups, h.Store = &Libvirt{h}, &Processes{h}, &Cgroups{h}, &Store{h}
	h.Consoles, h.Network, h.Runtime, h.Volumes = &Consoles{h}, &Network{h}, &Runtime{h}, &Volumes{h}
	return h
}

// Breaches are what was done that no host forgives, as sentences: a second QEMU was started beside a guest's first, one
// was moved from one container to another, or something was removed that a QEMU had open.
func (h *Host) Breaches() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.breaches)
}

func (h *Host) breach(format string, args ...any) {
	h.breaches = append(h.breaches, fmt.Sprintf(format, args...))
}

// unlock ends what changes the host, and calls those who watch the processes that have ended by it.
func (h *Host) unlock() {
	ended := h.ended
	h.ended = nil
	h.mu.Unlock()
	for _, f := range ended {
		f()
	}
}

// proc is a process that lives, or the one that a domain had.
type proc struct {
	pid       int
	group     cgroup.Group
	container string // whose cgroup it is in, "" outside of all
	oomScore  int
	ended     []func()
	qemu      *qemu // nil if it is none
}

// qemu is what a process has more if it is a QEMU. It has its state also when libvirt has forgotten it.
type qemu struct {
	uuid          string
	user          uint32
	state         libvirtd.State
	pause         libvirtd.Pause
	shutdownAsked bool
	nmis          int
	sizes         map[string]int64 // of disks by path, as ResizeDisk told
	holds         bool             // its guest holds what it is asked for
	leaving       []string         // aliases of disks that it is asked for
	frozen        bool             // its guest holds its writes
	files, taps   []string
	helper        *proc
	// cause is how it ended, as libvirt will notice; "" while it lives.
	cause libvirtd.Cause
}

func (h *Host) newProcess(g cgroup.Group, container string) *proc {
	h.lastPID++
	p := &proc{pid: h.lastPID, group: g, container: container}
	h.processes[p.pid] = p
	return p
}

// end ends a process, if it lives.
func (h *Host) end(p *proc, cause libvirtd.Cause) {
	if h.processes[p.pid] != p {
		return
	}
	delete(h.processes, p.pid)
	h.ended = append(h.ended, p.ended...)
	q := p.qemu
	if q == nil {
		return
	}
	q.cause = cause
	h.end(q.helper, "")
	for _, t := range q.taps {
		delete(h.taps, t)
	}
	left := slices.DeleteFunc(h.qemus[q.uuid], func(other *proc) bool { return other == p })
	if h.qemus[q.uuid] = left; len(left) == 0 {
		delete(h.qemus, q.uuid)
	}
}

// uses tells whether a living QEMU of the guest has a file open.
func (h *Host) uses(uid, path string) bool {
	return slices.ContainsFunc(h.qemus[uid], func(p *proc) bool { return slices.Contains(p.qemu.files, path) })
}

func mustParse(line string) cgroup.Group {
	g, err := cgroup.Parse([]byte(line))
	if err != nil {
		panic(err)
	}
	return g
}
