package hosttest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// CopiesIn says in which directory of the test's the copies of guests' disks are: whoever reads them opens them by their
// paths. Before it is called, none can be made.
func (h *Host) CopiesIn(dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.copies = dir
}

// LimitCopies says how many bytes the store has room for; none is no limit.
func (h *Host) LimitCopies(room int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room = room
}

// HasCopy tells whether there is a copy of a disk of a guest, complete or not.
func (h *Host) HasCopy(uid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.guests[uid]
	return g != nil && g.copy != ""
}

// CreateCommit is as store.Store's.
func (s *Store) CreateCommit(uid string, size, needs int64, _ int) (file string, err error) {
	const doing = "making room for a copy of a disk of guest %s: %w"
	if err := checkUID(uid); err != nil {
		return "", err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.room > 0 && needs > s.h.room {
		return "", fmt.Errorf(doing, uid, fault.NewTransient(v1alpha1.ReasonStoreFull, fmt.Errorf("%d bytes are free, %d are needed", s.h.room, needs)))
	}
	g := s.h.guests[uid]
	switch {
	case g == nil:
		return "", fmt.Errorf(doing, uid, fs.ErrNotExist)
	case s.h.copies == "":
		return "", fmt.Errorf(doing, uid, errors.New("the test has not said where, by CopiesIn"))
	}
	blank, err := diskformat.Overlay(diskformat.OverlayOptions{Size: size})
	if err != nil {
		return "", fmt.Errorf(doing, uid, err)
	}
	file = filepath.Join(s.h.copies, uid+".part")
	if err := os.WriteFile(file, blank, 0o600); err != nil {
		return "", fmt.Errorf(doing, uid, err)
	}
	g.copy = file
	return file, nil
}

// EndCommit is as store.Store's.
func (s *Store) EndCommit(uid string, free func() error) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	g := s.h.guests[uid]
	if g == nil || g.copy == "" {
		s.h.mu.Unlock()
		return nil
	}
	err := os.Truncate(g.copy, 0)
	s.h.mu.Unlock()
	if err == nil {
		err = free()
	}
	if err == nil {
		s.h.mu.Lock()
		defer s.h.mu.Unlock()
		if s.h.guests[uid] == g { // its directory may be gone meanwhile
			err = s.h.removeCopy(g)
		}
	}
	return fault.Doing(err, "removing a copy of a disk of guest %s", uid)
}

// removeCopy removes what a disk of a guest was copied to, which no QEMU may have open.
func (h *Host) removeCopy(g *guest) error {
	if h.opened(g.copy) {
		h.breach("%s was removed while a QEMU copied a disk of %s to it", g.copy, g.UID)
	}
	file := g.copy
	g.copy = ""
	return os.Remove(file)
}

// opened tells whether any QEMU that lives has a file open.
func (h *Host) opened(file string) bool {
	for _, qemus := range h.qemus {
		if slices.ContainsFunc(qemus, func(p *proc) bool { return slices.Contains(p.qemu.files, file) }) {
			return true
		}
	}
	return false
}

// Backup is a copy of a disk that a QEMU makes.
type Backup struct {
	// Disk and File are the paths of what it copies, and to where.
	Disk, File string
	// Frozen: the guest held its writes when it began.
	Frozen bool
	// Done and Total are in bytes.
	Done, Total uint64
}

// backupJob is what libvirt knows of a domain's backup. One that has ended is told of once.
type backupJob struct {
	Backup
	ended  bool
	failed string // why
}

// Backup is the one of a domain that goes on.
func (h *Host) Backup(uuid string) (b Backup, goesOn bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if job := h.backup(uuid); job != nil {
		return job.Backup, true
	}
	return b, false
}

func (h *Host) backup(uuid string) *backupJob {
	if d := h.domains[uuid]; d != nil && d.process.qemu.cause == "" && d.backup != nil && !d.backup.ended {
		return d.backup
	}
	return nil
}

// AdvanceBackup says how far the backup of a domain is.
func (h *Host) AdvanceBackup(uuid string, done, total uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	job := h.backup(uuid)
	if job == nil {
		return false
	}
	job.Done, job.Total = done, total
	return true
}

// CompleteBackup has the backup of a domain end: its file has, after qcow2's header, the path of the disk.
func (h *Host) CompleteBackup(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	job := h.backup(uuid)
	if job == nil {
		return false
	}
	f, err := os.OpenFile(job.File, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(job.Disk)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.endBackup(uuid, err.Error())
		return true
	}
	job.Done = job.Total
	h.endBackup(uuid, "")
	return true
}

// FailBackup has QEMU give up the backup of a domain.
func (h *Host) FailBackup(uuid, why string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.endBackup(uuid, why)
}

func (h *Host) endBackup(uuid, failed string) bool {
	job := h.backup(uuid)
	if job == nil {
		return false
	}
	job.ended, job.failed = true, failed
	h.domains[uuid].process.qemu.close(job.File)
	return true
}

// BeginBackup is as libvirtd.Client's, of one disk. It goes on until CompleteBackup, FailBackup or AbortBackup, or until its
// QEMU ends.
func (l *Libvirt) BeginBackup(ctx context.Context, id, doc string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	const doing = "copying a disk of"
	d, err := l.running(ctx, doing, id)
	if err != nil {
		return err
	}
	var wanted struct {
		XMLName xml.Name `xml:"domainbackup"`
		Disks   []struct {
			Target string `xml:"name,attr"`
			Driver struct {
				Type string `xml:"type,attr"`
			} `xml:"driver"`
			File struct {
				Path string `xml:"file,attr"`
			} `xml:"target"`
		} `xml:"disks>disk"`
	}
	if err := xml.Unmarshal([]byte(doc), &wanted); err != nil || len(wanted.Disks) != 1 || wanted.Disks[0].Driver.Type != "qcow2" {
		return refused(doing, id, "it is no backup of one disk (error 27)")
	}
	to := wanted.Disks[0]
	all := d.devices()
	i := slices.IndexFunc(all, func(has device) bool { return has.Target.Dev == to.Target })
	switch {
	case i < 0:
		return refused(doing, id, "it has no disk "+to.Target+" (error 8)")
	case l.h.backup(id) != nil:
		return refused(doing, id, "another backup goes on (error 55)")
	case !l.h.isBlank(to.File.Path):
		return refused(doing, id, "could not open "+to.File.Path+" (error 1)")
	}
	q := d.process.qemu
	d.backup = &backupJob{Backup: Backup{Disk: all[i].file(), File: to.File.Path, Frozen: q.frozen}}
	q.files = append(q.files, to.File.Path)
	return nil
}

// isBlank tells whether a path is that of a copy which nobody writes, and which has not been truncated.
func (h *Host) isBlank(file string) bool {
	for _, g := range h.guests {
		if st, err := os.Stat(file); g.copy == file && err == nil && st.Size() > 0 {
			return !h.opened(file)
		}
	}
	return false
}

// BackupProgress is as libvirtd.Client's.
func (l *Libvirt) BackupProgress(ctx context.Context, id string) (done, total uint64, goesOn bool, err error) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	const doing = "watching the copy of a disk of"
	d, err := l.running(ctx, doing, id)
	if err != nil {
		return 0, 0, false, err
	}
	job := d.backup
	switch {
	case job == nil:
		job = &backupJob{failed: "there is none"}
	case !job.ended:
		return job.Done, job.Total, true, nil
	}
	d.backup = nil
	if job.failed != "" {
		err = fmt.Errorf("%s domain %s: %w", doing, id, fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("QEMU gave up the copy: "+job.failed)))
	}
	return job.Done, job.Total, false, err
}

// AbortBackup is as libvirtd.Client's.
func (l *Libvirt) AbortBackup(ctx context.Context, id string) error {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	d, err := l.find(ctx, "giving up the copy of a disk of", id)
	if err == nil && d != nil {
		l.h.endBackup(id, "it was cancelled")
	}
	return err
}

// locked tells whether another QEMU than this guest's has a disk of the store open, for which QEMU locks it.
func (h *Host) locked(file string) bool {
	return strings.HasPrefix(file, vmsDir) && strings.HasSuffix(file, ".qcow2") && h.opened(file)
}

// Frozen tells whether a guest holds its writes.
func (h *Host) Frozen(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.domains[uuid]
	return d != nil && d.process.qemu.frozen
}

// Freeze has a guest hold its writes, or let them go on, as its agent does by guest-fsfreeze-freeze and guest-fsfreeze-thaw.
func (h *Host) Freeze(uuid string, frozen bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.domains[uuid]; d != nil {
		d.process.qemu.frozen = frozen
	}
}

// FreezingAgent answers for a guest agent that has its guest hold its writes, and let them go on, and refuses all else.
func (h *Host) FreezingAgent(uuid string) func(command string) (string, error) {
	return func(command string) (string, error) {
		freezes := strings.Contains(command, `"guest-fsfreeze-freeze"`)
		if !freezes && !strings.Contains(command, `"guest-fsfreeze-thaw"`) {
			return `{"error":{"class":"CommandNotFound","desc":"it does nothing else"}}`, nil
		}
		h.Freeze(uuid, freezes)
		return `{"return":1}`, nil
	}
}
