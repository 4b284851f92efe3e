#!/usr/bin/env bash
# All that `make systemd-host` does: adds a host with systemd and cgroup v2 to the lab, and tests on it; with DEBIAN="bookworm trixie"
# on one of each release. The lab is left as it was found: down, or up without such a host.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${BERTH_CACHE:?run make systemd-host}"
lab() { "$BERTH_CACHE/bin/lab" -root "$PWD" "$@"; }
was_up=no verdict=0 log=_out/systemd-host.log
lab env >/dev/null 2>&1 && was_up=yes
mkdir -p _out
: >"$log"

leave() {
	if [ "$was_up" = yes ]; then lab systemd-host down; else lab down; fi
}
trap leave EXIT
lab up || exit
for debian in ${DEBIAN:-bookworm}; do
	printf '\n== Debian %s\n' "$debian"
	lab systemd-host -debian "$debian" || exit
	eval "$(lab env)"
	go test -v -count=1 -timeout 60m -run '^TestSystemdHost' ./test/e2e 2>&1 | tee -a "$log" |
		{ grep --line-buffered -E '^ *--- |^(ok|FAIL|panic)' || true; } || verdict=1
done
[ "$verdict" = 0 ] || cat "$log"
exit "$verdict"
