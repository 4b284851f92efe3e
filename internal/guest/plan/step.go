package plan

// Step is one change to the host. Each accepts that its work is already done,
// and leaves nothing half.
//
//sumtype:decl
type Step interface{ isStep() }

// The steps of a guest's life, in the order of a start; then those of its end.
type (
	// Pull begins to fetch the images that are missing, and does not wait.
	Pull struct{ Bases []string }
	// MakeDisks makes the overlays; ephemeral ones anew.
	MakeDisks struct{}
	// Create has libvirt start QEMU with its vCPUs halted.
	Create struct{}
	// Place moves QEMU into the container's cgroup.
	Place struct{}
	// Plug moves the tap into the berth's network.
	Plug struct{}
	// Seed writes the cloud-init data.
	Seed struct{}
	// Attach hands console and DHCP to the shim.
	Attach struct{}
	// Resume lets the vCPUs run, after a last proof that this is the only QEMU of the guest, in the right place.
	Resume struct{}
	// Suspend halts the vCPUs.
	Suspend struct{}
	// Tell tells the shim that the guest runs, or is paused.
	Tell struct{ Paused bool }
	// Shutdown asks the guest to power off.
	Shutdown struct{}
	// Destroy ends QEMU; libvirt may know its domain for a moment more.
	Destroy struct{}
	// Kill ends every QEMU process of the guest that libvirt does not know, or that lives in the wrong place.
	Kill struct{}
	// Exit has the shim end as the guest did.
	Exit struct{ End End }
	// Clear removes the tap, sockets and seed of a guest that is gone.
	Clear struct{}
	// RemoveDisks removes the guest's directory.
	RemoveDisks struct{}
)

func (Pull) isStep()        {}
func (MakeDisks) isStep()   {}
func (Create) isStep()      {}
func (Place) isStep()       {}
func (Plug) isStep()        {}
func (Seed) isStep()        {}
func (Attach) isStep()      {}
func (Resume) isStep()      {}
func (Suspend) isStep()     {}
func (Tell) isStep()        {}
func (Shutdown) isStep()    {}
func (Destroy) isStep()     {}
func (Kill) isStep()        {}
func (Exit) isStep()        {}
func (Clear) isStep()       {}
func (RemoveDisks) isStep() {}
