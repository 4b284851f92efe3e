package libvirtd

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// DiskLimits are what a disk may do in a second; 0 is no limit.
type DiskLimits struct {
	// IOPS are requests, Bytes what they read and write.
	IOPS, Bytes int64
	// BurstIOPS and BurstBytes are allowed for BurstSeconds, which is at least 1 with any of them.
	BurstIOPS, BurstBytes, BurstSeconds int64
}

// BlockStats are what a disk of a domain has done in its present life.
type BlockStats struct {
	// Target is libvirt's name for the disk.
	Target string
	// ReadBytes and WrittenBytes were moved by so many Reads and Writes, which took ReadTime and WriteTime together.
	ReadBytes, WrittenBytes, Reads, Writes uint64
	ReadTime, WriteTime                    time.Duration
	// Capacity is what the guest sees, in bytes, 0 for an empty drive. Allocation is where the furthest byte that QEMU wrote in
	// this life is in its file, not how much the file takes.
	Capacity, Allocation uint64
}

// AttachDisk plugs the disk of this XML into a running domain. A domain that has it already refuses.
func (c *Client) AttachDisk(ctx context.Context, id, doc string) error {
	return c.device(ctx, "plugging a disk into", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainAttachDeviceFlags(d, doc, uint32(golibvirt.DomainDeviceModifyLive))
	})
}

// DetachDisk asks a domain's guest to let go of the disk with this alias. When it has, Watcher.Changed tells. One that is
// gone or going already is no error.
func (c *Client) DetachDisk(ctx context.Context, id, alias string) error {
	return c.idempotent(ctx, "unplugging "+alias+" from", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		err := l.DomainDetachDeviceAlias(d, alias, uint32(golibvirt.DomainDeviceModifyLive))
		// There is no code for QEMU's refusal to ask a guest again that has not answered yet. Whether it lets go, the domain tells.
		if isCode(err, golibvirt.ErrInternalError) {
			return nil
		}
		return err
	}, func(d Domain) bool { return !strings.Contains(d.XML, "<alias name='"+alias+"'/>") })
}

// ErrMediumHeld is the error of a guest that does not open its CD-ROM drive.
var ErrMediumHeld = errors.New("the guest holds the medium of its CD-ROM drive: unmount it in the guest")

// ChangeMedium gives a domain's CD-ROM drive the medium of this XML, or none. Without force a guest that holds the one
// that is in is asked for it, and if it does not give it within seconds that is ErrMediumHeld, a transient error. libvirt does nothing
// if the medium has the path of the one that is in.
func (c *Client) ChangeMedium(ctx context.Context, id, doc string, force bool) error {
	flags := golibvirt.DomainDeviceModifyLive
	if force {
		flags |= golibvirt.DomainDeviceModifyForce
	}
	held := false
	err := c.device(ctx, "changing the medium of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		err := l.DomainUpdateDeviceFlags(d, doc, flags)
		held = !force && isCode(err, golibvirt.ErrOperationFailed)
		return err
	})
	if held {
		return fmt.Errorf("%w: %w", ErrMediumHeld, err)
	}
	return err
}

// SetDiskLimits gives the disk of a running domain these limits in place of those that it had.
func (c *Client) SetDiskLimits(ctx context.Context, id, target string, limits DiskLimits) error {
	// What is left out stays as it was.
	var params []golibvirt.TypedParam
	for field, value := range map[string]int64{
		golibvirt.DomainBlockIotuneTotalIopsSec: limits.IOPS, golibvirt.DomainBlockIotuneTotalBytesSec: limits.Bytes,
		golibvirt.DomainBlockIotuneTotalIopsSecMax: limits.BurstIOPS, golibvirt.DomainBlockIotuneTotalBytesSecMax: limits.BurstBytes,
		golibvirt.DomainBlockIotuneTotalIopsSecMaxLength:  seconds(limits.BurstIOPS, limits),
		golibvirt.DomainBlockIotuneTotalBytesSecMaxLength: seconds(limits.BurstBytes, limits),
	} {
		params = append(params, golibvirt.TypedParam{Field: field, Value: *golibvirt.NewTypedParamValueUllong(uint64(value))}) //nolint:gosec // no limit is negative
	}
	return c.device(ctx, "limiting disk "+target+" of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainSetBlockIOTune(d, target, params, uint32(golibvirt.DomainAffectLive))
	})
}

// seconds is how long a burst may last; none has no length.
func seconds(burst int64, l DiskLimits) int64 {
	if burst == 0 {
		return 0
	}
	return l.BurstSeconds
}

// SetMetadata replaces the element of a domain's metadata that has the XML namespace of this one.
func (c *Client) SetMetadata(ctx context.Context, id, doc string) error {
	var root struct{ XMLName xml.Name }
	if err := xml.Unmarshal([]byte(doc), &root); err != nil {
		return fmt.Errorf("reading metadata: %w", err)
	}
	// libvirt declares the namespace once more, with the key as its prefix, which must be another than the element's own.
	return c.device(ctx, "changing the metadata of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainSetMetadata(d, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{doc},
			golibvirt.OptString{root.XMLName.Local}, golibvirt.OptString{root.XMLName.Space}, golibvirt.DomainAffectLive)
	})
}

// device is act for what concerns devices. Their XML is ours, and what libvirt says against it comes of the domain as it
// is by then, which the next look at it tells: that is nobody's fault.
func (c *Client) device(ctx context.Context, doing, id string, op func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	err := c.act(ctx, doing, id, op)
	if fault.ClassOf(err) == fault.User {
		err = fault.NewTransient(v1alpha1.ReasonLibvirtRefused, err)
	}
	return err
}

// BlockStats returns what the disks of every running domain have done, foreign ones included, by its UUID. Domains that
// something else is done with have none, for once.
func (c *Client) BlockStats(ctx context.Context) (map[string][]BlockStats, error) {
	records, err := ask(ctx, c.statistics, func(l *golibvirt.Libvirt) ([]golibvirt.DomainStatsRecord, error) {
		return l.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsBlock),
			uint32(golibvirt.ConnectGetAllDomainsStatsNowait|golibvirt.ConnectGetAllDomainsStatsActive))
	})
	if err != nil {
		return nil, fmt.Errorf("querying the disks of all domains: %w", classify(err))
	}
	all := make(map[string][]BlockStats, len(records))
	for _, r := range records {
		all[uuidText(r.Dom.UUID)] = blockStats(r.Params)
	}
	return all, nil
}

// blockStats sorts parameters by disk: block.<number>.<field>, after block.count
// (https://libvirt.org/html/libvirt-libvirt-domain.html#virConnectGetAllDomainStats).
func blockStats(params []golibvirt.TypedParam) []BlockStats {
	var disks []BlockStats
	for _, p := range params {
		number, field, _ := strings.Cut(strings.TrimPrefix(p.Field, "block."), ".")
		i, err := strconv.Atoi(number)
		if err != nil || field == "name" && i != len(disks) {
			continue
		}
		if field == "name" { // the first of each disk's
			name, _ := p.Value.I.(string)
			disks = append(disks, BlockStats{Target: name})
			continue
		}
		if i < 0 || i >= len(disks) {
			continue
		}
		d := &disks[i]
		value, _ := p.Value.I.(uint64)
		switch field {
		case "rd.times":
			d.ReadTime = time.Duration(value) //nolint:gosec // nanoseconds of one life
		case "wr.times":
			d.WriteTime = time.Duration(value) //nolint:gosec // likewise
		default:
			number := map[string]*uint64{
				"rd.reqs": &d.Reads, "rd.bytes": &d.ReadBytes, "wr.reqs": &d.Writes, "wr.bytes": &d.WrittenBytes,
				"capacity": &d.Capacity, "allocation": &d.Allocation,
			}[field]
			if number != nil {
				*number = value
			}
		}
	}
	return disks
}
