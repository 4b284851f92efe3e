package machine

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeName of the switch that all machines are plugged into.
const bridgeName = "berth-lab"

// nicName of a machine's network card, in the machine and on the switch.
const nicName = "eth0"

func portName(machine string) string { return "bl-" + machine }

// Owner is who made the switch that is here, or "" when there is none.
func Owner() (string, error) {
	link, err := netlink.LinkByName(bridgeName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for bridge %s: %w", bridgeName, err)
	}
	return link.Attrs().Alias, nil
}

// Switch makes the switch between the machines of owner, gives this host an
// address on it, and routes to what lies behind the machines.
func Switch(owner, address string, routes map[string]string) error {
	if was, err := Owner(); err != nil || was == owner {
		return err
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making bridge %s: %w", bridgeName, err)
	}
	made, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	if err := configure(made, address, routes); err != nil {
		return err
	}
	// Last: it says that the rest is done.
	return netlink.LinkSetAlias(made, owner)
}

// RemoveSwitch removes the switch; its routes go with it.
func RemoveSwitch() error { return remove(bridgeName) }

func remove(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// plug connects the machine of process pid with the switch.
func plug(machine string, pid int) error {
	if err := unplug(machine); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: portName(machine), MasterIndex: bridge.Attrs().Index},
		PeerName:      nicName,
		PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("plugging %s into the switch: %w", machine, err)
	}
	return netlink.LinkSetUp(veth)
}

func unplug(machine string) error { return remove(portName(machine)) }

// configure gives a link its address, and routes through it.
func configure(link netlink.Link, address string, routes map[string]string) error {
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", link.Attrs().Name, address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for subnet, gateway := range routes {
		_, dst, err := net.ParseCIDR(subnet)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(gateway)}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing %s by %s: %w", subnet, gateway, err)
		}
	}
	return nil
}

// configureInside sets up the network of the machine that this process is in.
func configureInside(s Spec) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	nic, err := netlink.LinkByName(nicName)
	if err != nil {
		return err
	}
	return configure(nic, s.Address, s.Routes)
}
