package seed

// The names on the disk with the guest program.
const (
	toolsLabel   = "BERTH"
	toolsProgram = "berth-guest"
	toolsStart   = "start"
)

// StartTools is the command of sh(1) that starts the guest program from its disk. It is the same in every guest, does
// nothing if the program runs, and waits for nothing.
const StartTools = "mkdir -p /run/berth && mount -o ro LABEL=" + toolsLabel + " /run/berth && { sh /run/berth/" + toolsStart + "; umount /run/berth; }"

// vendorData has cloud-init run it at each boot, whatever modules it is configured to have: the handler of boothooks is a
// part of it.
const vendorData = "#cloud-boothook\n#!/bin/sh\n" + StartTools + "\n"

// start is run by root, early at a boot or late, once or twice. The program is copied, as /run may be noexec and the disk is
// to be let go. With systemd it is a transient unit that is restarted, and what it has begun for somebody outlives that; it
// waits in the queue while a boot has not come to units of that kind, and a second of its name is refused. SELinux lets
// systemd run nothing that has the type of its directory.
const start = `#!/bin/sh
set -eu
program=/var/lib/berth/berth-guest
mkdir -p /var/lib/berth
if ! cmp -s "${0%/*}/berth-guest" $program; then
	cp "${0%/*}/berth-guest" $program.new
	chmod 755 $program.new
	mv $program.new $program
fi
if [ -d /run/systemd/system ]; then
	chcon -t bin_t $program 2>/dev/null || :
	systemctl is-active --quiet berth-guest && exit 0
	systemctl reset-failed berth-guest 2>/dev/null || :
	exec systemd-run --no-block --unit=berth-guest --description="Berth's guest program" \
		-p Restart=always -p RestartSec=1 -p StartLimitIntervalSec=0 \
		-p KillMode=process -p OOMPolicy=continue -p TasksMax=infinity $program
fi
if [ -e /run/berth-guest.pid ] && kill -0 "$(cat /run/berth-guest.pid)" 2>/dev/null; then
	exit 0
fi
(
	trap '' HUP
	while :; do
		$program || :
		sleep 1
	done
) </dev/null >/dev/null 2>&1 &
echo $! >/run/berth-guest.pid
`

// Tools returns the disk with the guest program: an ISO 9660 image labelled BERTH with the files berth-guest and start. The
// same program gives the same bytes.
func Tools(program []byte) []byte {
	files := []file{{toolsProgram, program}, {toolsStart, []byte(start)}}
	_, size := image(toolsLabel, files, 0)
	b, _ := image(toolsLabel, files, size)
	return b
}
