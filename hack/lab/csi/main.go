// Command csi is the lab's CSI driver: volumes are files outside of the nodes, so that each node can have each volume, also
// at once with others. One process for all nodes makes, grows and removes them, one in each node mounts them.
//
//	csi SOCKET DIR       make volumes in a directory
//	csi SOCKET DIR NODE  give them to a node's kubelet
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	driverName = "csi.lab.berth.dev"
	// registrationSocket is where kubelet looks for drivers.
	registrationSocket = "/var/lib/kubelet/plugins_registry/" + driverName + "-reg.sock"
)

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "csi:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New("usage: csi SOCKET DIR [NODE]")
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(server, identity{})
	if len(args) == 2 {
		if err := os.MkdirAll(args[1], 0o700); err != nil {
			return err
		}
		csi.RegisterControllerServer(server, controller{dir: volumes(args[1])})
		return serve(server, args[0])
	}
	csi.RegisterNodeServer(server, &node{name: args[2], dir: volumes(args[1]), open: map[string]*os.File{}})
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, registry{socket: args[0]})
	failed := make(chan error, 2)
	go func() { failed <- serve(server, args[0]) }()
	go func() { failed <- serve(registrar, registrationSocket) }()
	return <-failed
}

// serve on a socket, which a process that was killed may have left.
func serve(server *grpc.Server, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// logged logs what changed something, and what failed.
func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, request)
	if err != nil && status.Code(err) == codes.Unknown {
		err = status.Error(codes.Internal, err.Error())
	}
	if of, is := request.(interface{ GetVolumeId() string }); err != nil || is {
		id := ""
		if is {
			id = of.GetVolumeId()
		}
		log.Printf("%s %s: %v", filepath.Base(info.FullMethod), id, err)
	}
	return answer, err
}

// volumes is the directory of all of them, a file each.
type volumes string

// path of the volume of a name, which may be anything.
func (v volumes) path(id string) (string, error) {
	if id == "" || filepath.Base(id) != id || id[0] == '.' {
		return "", status.Errorf(codes.InvalidArgument, "%q cannot be a volume's name", id)
	}
	return filepath.Join(string(v), id), nil
}

// existing is the path of a volume that must be there.
func (v volumes) existing(id string) (string, error) {
	path, err := v.path(id)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", status.Errorf(codes.NotFound, "volume %s: %v", id, err)
	}
	return path, nil
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_CONTROLLER_SERVICE,
		}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{
			Type: csi.PluginCapability_VolumeExpansion_ONLINE,
		}}},
	}}, nil
}

func (identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// registry tells kubelet of the driver's own socket.
type registry struct {
	registration.UnimplementedRegistrationServer
	socket string
}

func (r registry) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: "CSIPlugin", Name: driverName, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

func (registry) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered: %t %s", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}
