package domain

import "libvirt.org/go/libvirtxml"

// BackupXML has a domain's disk copied into a qcow2 file that is there (https://libvirt.org/formatbackup.html).
func BackupXML(d LiveDisk, file string) (string, error) {
	if err := checkTexts([]string{file}); err != nil {
		return "", err
	}
	backup := libvirtxml.DomainBackup{Push: &libvirtxml.DomainBackupPush{Disks: &libvirtxml.DomainBackupPushDisks{
		Disks: []libvirtxml.DomainBackupPushDisk{{
			Name:   d.Target,
			Driver: &libvirtxml.DomainBackupDiskDriver{Type: string(QCOW2)},
			Target: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: file}},
		}},
	}}}
	return backup.Marshal()
}
