package libvirtd

import (
	"context"
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// BeginBackup has QEMU copy disks as they are at this moment, into files that are there, as this XML says; the guest goes on
// (https://libvirt.org/formatbackup.html).
func (c *Client) BeginBackup(ctx context.Context, id, doc string) error {
	return c.device(ctx, "copying a disk of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainBackupBegin(d, doc, nil, golibvirt.DomainBackupBeginReuseExternal)
	})
}

// BackupProgress tells how many bytes of a domain's backup are copied, and of how many, while it goes on. Once it does not,
// the backup is complete, or the error says why it is not.
func (c *Client) BackupProgress(ctx context.Context, id string) (done, total uint64, goesOn bool, err error) {
	isComplete, said := false, ""
	err = c.act(ctx, "watching the copy of a disk of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		kind, params, err := l.DomainGetJobStats(d, 0)
		goesOn = kind != int32(golibvirt.DomainJobNone)
		if err == nil && !goesOn {
			kind, params, err = l.DomainGetJobStats(d, golibvirt.DomainJobStatsCompleted)
			isComplete = kind == int32(golibvirt.DomainJobCompleted)
		}
		for _, p := range params {
			switch p.Field {
			case golibvirt.DomainJobDiskProcessed:
				done, _ = p.Value.I.(uint64)
			case golibvirt.DomainJobDiskTotal:
				total, _ = p.Value.I.(uint64)
			case golibvirt.DomainJobErrmsg:
				said, _ = p.Value.I.(string)
			}
		}
		return err
	})
	if err == nil && !goesOn && !isComplete {
		err = fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("QEMU gave up the copy: "+fault.Printable(said, maxErrorText)))
	}
	return done, total, goesOn, err
}

// AbortBackup ends a domain's backup, if there is one. That there is no domain is no error.
func (c *Client) AbortBackup(ctx context.Context, id string) error {
	_, _, goesOn, err := c.BackupProgress(ctx, id)
	switch reason := fault.ReasonOf(err); {
	case goesOn && err == nil:
		return c.act(ctx, "giving up the copy of a disk of", id, (*golibvirt.Libvirt).DomainAbortJob)
	case err == nil, reason == v1alpha1.ReasonStoreFailed, reason == v1alpha1.ReasonNotRunning: // it has ended by itself, however it did
		return nil
	}
	return err
}
