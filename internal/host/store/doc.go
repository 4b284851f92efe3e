// Package store owns what Berth keeps on a node: images by digest, guests' disks
// as copy-on-write overlays over them, and the seeds of running guests.
//
//	<root>/images/<key>/   disk.qcow2 or disk.raw, or kernel.img and initrd.img; meta.json, access.json
//	<root>/images/         refs.json: what tags meant here; salt
//	<root>/vms/<uid>/      vm.json: the VM's record; <disk>.qcow2; <disk>.base, a link to the image below it;
//	                       <disk>.cdrom.base, one to the image in a CD-ROM drive
//	<root>/tools/<digest>.iso  the disk with the guest program, of which each guest's directory has a link, tools.iso
//	<run>/seeds/<uid>.iso  on tmpfs
//	<run>/seeds/<uid>.ign  beside it, for guests that have Ignition
//
// Everything in it is complete or absent, whenever the machine stops. Directories
// belong to root, so that a guest that broke out of QEMU can spoil its own disk's
// bytes and put no other file in their place. A guest's user is the group of its
// directory; no process is ever in that group. It never fetches, never decides
// what to remove, and never truncates or replaces a disk that is there.
package store
