package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/hack/lab/loop"
)

const (
	mib = 1 << 20
	// minXFS is what mkfs.xfs wants at least.
	minXFS = 300 * mib
)

// controller makes, grows and removes volumes.
type controller struct {
	csi.UnimplementedControllerServer
	dir volumes
}

func (controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: c}},
		})
	}
	return answer, nil
}

// CreateVolume makes a sparse file, with a file system unless it is to be a block device. It is there whole or not at all.
func (c controller) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	path, err := c.dir.path(r.Name)
	if err != nil {
		return nil, err
	}
	size, formatted := wholeMiB(r.CapacityRange.GetRequiredBytes()), false
	for _, capability := range r.VolumeCapabilities {
		if err := checkFileSystem(capability); err != nil {
			return nil, err
		}
		formatted = formatted || capability.GetMount() != nil
	}
	if formatted {
		size = max(size, minXFS)
	}
	if limit := r.CapacityRange.GetLimitBytes(); limit > 0 && size > limit {
		return nil, status.Errorf(codes.OutOfRange, "%d bytes at most are wanted, xfs has %d at least", limit, size)
	}
	if info, err := os.Stat(path); err == nil {
		size = info.Size()
	} else if err := makeVolume(ctx, path, size, formatted); err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: r.Name, CapacityBytes: size}}, nil
}

func makeVolume(ctx context.Context, path string, size int64, formatted bool) error {
	part := path + ".part"
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(part, size); err != nil {
		return err
	}
	if formatted {
		if err := do(ctx, "mkfs.xfs", "-q", "-f", "-K", part); err != nil {
			return err
		}
	}
	return os.Rename(part, path)
}

// DeleteVolume removes the file of a volume that no node has any more.
func (c controller) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	path, err := c.dir.path(r.VolumeId)
	if err != nil {
		return nil, err
	}
	device, err := loop.Find(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &csi.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case device != nil:
		device.Close()
		return nil, status.Errorf(codes.FailedPrecondition, "a node has it as %s", device.Name())
	}
	return &csi.DeleteVolumeResponse{}, os.Remove(path)
}

// ControllerExpandVolume makes the file larger. Nodes do the rest.
func (c controller) ControllerExpandVolume(_ context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	path, err := c.dir.existing(r.VolumeId)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	size := max(wholeMiB(r.CapacityRange.GetRequiredBytes()), info.Size())
	if err := os.Truncate(path, size); err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

// ValidateVolumeCapabilities says that a volume can be used in every way that is known here.
func (c controller) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := c.dir.existing(r.VolumeId); err != nil {
		return nil, err
	}
	for _, capability := range r.VolumeCapabilities {
		if err := checkFileSystem(capability); err != nil {
			return nil, err
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: r.VolumeCapabilities},
	}, nil
}

func checkFileSystem(capability *csi.VolumeCapability) error {
	if wanted := capability.GetMount().GetFsType(); wanted != "" && wanted != "xfs" {
		return status.Errorf(codes.InvalidArgument, "file system %s is wanted; volumes of the lab have xfs, which can grow on every machine", wanted)
	}
	return nil
}

func wholeMiB(bytes int64) int64 { return max((bytes+mib-1)/mib, 1) * mib }

// do runs a program that works on a volume.
func do(ctx context.Context, command ...string) error {
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", command, err, out)
	}
	return nil
}
