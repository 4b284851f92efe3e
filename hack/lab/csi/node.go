package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/hack/lab/loop"
)

// node gives volumes to one node.
type node struct {
	csi.UnimplementedNodeServer
	name string
	dir  volumes

	mu sync.Mutex
	// open keeps the devices of block volumes from going before somebody uses them.
	open map[string]*os.File
}

func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.name}, nil
}

func (n *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return answer, nil
}

// NodeStageVolume mounts a volume for the whole node. A block volume it gives a device.
func (n *node) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	device, err := n.device(r.VolumeId)
	if err != nil {
		return nil, err
	}
	answer := &csi.NodeStageVolumeResponse{}
	if r.VolumeCapability.GetMount() == nil {
		n.keep(r.VolumeId, device)
		return answer, nil
	}
	defer device.Close()
	if isMounted(r.StagingTargetPath) {
		return answer, nil
	}
	if err := os.MkdirAll(r.StagingTargetPath, 0o750); err != nil {
		return nil, err
	}
	return answer, explain("mounting "+device.Name(), unix.Mount(device.Name(), r.StagingTargetPath, "xfs", 0, ""))
}

// NodePublishVolume gives a volume to a pod.
func (n *node) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.VolumeCapability.GetMount() == nil {
		return &csi.NodePublishVolumeResponse{}, n.publishDevice(r.VolumeId, r.TargetPath)
	}
	if !isMounted(r.TargetPath) {
		if err := os.MkdirAll(r.TargetPath, 0o750); err != nil {
			return nil, err
		}
		if err := unix.Mount(r.StagingTargetPath, r.TargetPath, "", unix.MS_BIND, ""); err != nil {
			return nil, explain("mounting for the pod", err)
		}
	}
	var err error
	if r.Readonly {
		err = unix.Mount("", r.TargetPath, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return &csi.NodePublishVolumeResponse{}, explain("making it read-only", err)
}

// publishDevice makes a device node, by which the device is found again after a power failure.
func (n *node) publishDevice(id, target string) error {
	device, err := n.device(id) // the driver may be another one than staged it
	if err != nil {
		return err
	}
	n.keep(id, device)
	var s unix.Stat_t
	if err := unix.Stat(device.Name(), &s); err != nil {
		return explain("looking at "+device.Name(), err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return explain("making a device node", unix.Mknod(target, unix.S_IFBLK|0o600, int(s.Rdev)))
}

func (n *node) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	answer := &csi.NodeUnpublishVolumeResponse{}
	if isMounted(r.TargetPath) {
		if err := unix.Unmount(r.TargetPath, 0); err != nil {
			return nil, explain("unmounting for the pod", err)
		}
	}
	if err := os.Remove(r.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return answer, nil
}

// NodeUnstageVolume takes a volume from the node, unless somebody there still uses it: storage that is behind a network is
// gone after this, whoever writes to it.
func (n *node) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	answer := &csi.NodeUnstageVolumeResponse{}
	path, err := n.dir.path(r.VolumeId)
	if err != nil {
		return nil, err
	}
	device, err := loop.Find(path)
	if errors.Is(err, fs.ErrNotExist) || device == nil && err == nil { // nobody has it, or it was deleted while the node was off
		return answer, nil
	}
	if err != nil {
		return nil, err
	}
	defer device.Close()
	used, err := users(device, r.StagingTargetPath)
	if err != nil {
		return nil, err
	}
	if len(used) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "still in use: %s", strings.Join(used, ", "))
	}
	if isMounted(r.StagingTargetPath) {
		if err := unix.Unmount(r.StagingTargetPath, 0); err != nil {
			return nil, explain("unmounting", err)
		}
	}
	n.keep(r.VolumeId, nil)
	return answer, nil
}

// NodeExpandVolume has the device, and the file system on it, become as large as the file.
func (n *node) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	device, err := n.device(r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := loop.Grow(device); err != nil {
		return nil, explain("growing "+device.Name(), err)
	}
	if r.VolumeCapability.GetMount() != nil {
		if err := do(ctx, "xfs_growfs", r.VolumePath); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: r.CapacityRange.GetRequiredBytes()}, nil
}

// device of a volume, open.
func (n *node) device(id string) (*os.File, error) {
	path, err := n.dir.existing(id)
	if err != nil {
		return nil, err
	}
	return loop.Open(path)
}

// keep a block volume's device open, or not any more if it is nil.
func (n *node) keep(id string, device *os.File) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.open[id]; was != nil {
		was.Close()
	}
	delete(n.open, id)
	if device != nil {
		n.open[id] = device
	}
}

func isMounted(path string) bool {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func explain(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
