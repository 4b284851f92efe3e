#!/usr/bin/env bash
# All that `make test` does: linters, tests on real parts, and journeys in a
# lab, which is brought up for them and taken down again unless it was there.
# Every step runs even if one before it failed; the end says which did.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${BERTH_CACHE:?run make test}"
lab() { "$BERTH_CACHE/bin/lab" -root "$PWD" "$@"; }
failed=()
declare -A pids

step() {
	local name=$1 start=$SECONDS
	shift
	printf '\n== %s\n' "$name"
	if "$@"; then
		printf '== %s: ok, %d s\n' "$name" $((SECONDS - start))
	else
		printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - start))
		failed+=("$name")
	fi
}

# parts names the real parts to the tests: an API server, containerd, helm.
parts() {
	local exports
	exports=$(lab parts) && eval "$exports" && export BERTH_TEST_REQUIRE=1
}

can_race() { command -v "${CC:-gcc}" >/dev/null; }

# unit runs every test but the journeys, and what race runs whole.
unit() {
	local packages
	packages=$(go list ./... | grep -v /test/e2e) || return
	can_race && packages=$(grep -vE '/internal/(berth|host/libvirtd)(/|$)' <<<"$packages")
	# shellcheck disable=SC2086 # one package a word
	go test -count=1 -p 2 $packages && go test -C hack -count=1 ./...
}

# race runs what shares memory between goroutines under the race detector, which needs cgo. Some of the agent's tests are
# shorter for it.
race() {
	can_race || { echo "skipped: the race detector needs a C compiler" && return; }
	CGO_ENABLED=1 go test -race -short -count=1 -p 1 ./internal/agent/... ./internal/host/libvirtd ./internal/berth/...
}

# fuzz looks for hostile input for a few seconds each; what it once found is
# among the seeds, which unit runs. It counts runs and not seconds: on a busy
# machine the end of a time can be taken for a failure (go.dev/issue/75804).
# What targets write and sync is in memory: a run that takes ten seconds is
# taken for a hanging one, and the journeys have the disk.
fuzz() {
	local file target verdict=0
	while IFS=: read -r file target; do
		TMPDIR=/dev/shm GOTMPDIR=/tmp go test -run '^$' -fuzz "^$target\$" -fuzztime 1000x -fuzzminimizetime 100x "$(dirname "$file")" || verdict=1
	done < <(grep -rE --include='*_test.go' '^func Fuzz' . | sed -E 's/func (Fuzz[A-Za-z]*).*/\1/')
	git ls-files --others '*/testdata/fuzz/*' | xargs -r head -c 2000 # what it found, to be kept with the mend
	return "$verdict"
}

# beside starts something that takes what the journeys leave: a session of its own, of the lowest priority among sessions
# and in itself. ended tells how it went.
beside() {
	local name=$1
	shift
	# shellcheck disable=SC2016 # which expands them
	setsid bash -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; renice -n 19 "$$" >/dev/null; "$@"' bash "$@" >"_out/$name.log" 2>&1 &
	pids[$name]=$!
}
export -f fuzz
trap 'kill -- "${pids[@]/#/-}" 2>/dev/null' EXIT

logged() {
	"$1" 2>&1 | tee "_out/$1.log"
}

ended() {
	local verdict=0
	wait "${pids[$1]}" || verdict=1
	cat "_out/$1.log"
	return "$verdict"
}

# failures are the last words of the tests that failed, from their log: five of each, with the lines that go with them.
# After those of all logs, briefly tells each test's again, a line each and without what it shows of the cluster: whoever
# sees but the end of an output sees what failed.
failures() {
	awk '
		$1 == "---" && $2 == "FAIL:" { failed[$3] = 1 }
		$1 == "===" || $1 == "---" { now = $3; lines = 0; next }
		$1 ~ /^[a-z_]+_test\.go:[0-9]+:$/ { said[now, count[now]++] = now ": " substr($0, 1, 800); lines = 1; next }
		lines > 0 && lines++ <= 25 { said[now, count[now] - 1] = said[now, count[now] - 1] "\n" substr($0, 1, 800) }
		END { for (name in failed) for (i = count[name] - 5; i < count[name]; i++) if (i >= 0) print said[name, i] }
	' "$1"
}

briefly() {
	awk '
		$1 == "---" && $2 == "FAIL:" { failed[$3] = 1 }
		$1 == "===" || $1 == "---" { now = $3 }
		$1 ~ /^[a-z_]+_test\.go:[0-9]+:$/ && $2 != "$" { said[now, count[now]++] = now ": " substr($0, 5, 300) }
		END { for (name in failed) for (i = count[name] - 30; i < count[name]; i++) if (i >= 0) print said[name, i] }
	' "$1"
}

journeys() {
	local was_up=no verdict=0 log=_out/journeys.log
	: >"$log"
	lab env >/dev/null 2>&1 && was_up=yes
	lab up || return
	eval "$(lab env)"
	# Those on a host with systemd are in make systemd-host; three that take minutes, and one that needs a browser, are left to make faults. Each journey is told when it is over, and all that failed ones had to say after the last.
	go test -v -count=1 -timeout 75m -skip '^TestSystemdHost|^TestStorm$|^TestAPIServerFails$|^TestSeedingKilled$|^TestScreenInBrowser$' ./test/e2e 2>&1 | tee "$log" |
		{ grep --line-buffered -E '^ *--- |^(ok|FAIL|panic)' || true; } || { verdict=1 && cat "$log"; }
	[ "$was_up" = yes ] || lab down || verdict=1
	return "$verdict"
}

step "build the lab's parts" lab build
step "find them" parts
mkdir -p _out
step "tests on real parts" logged unit
beside lint hack/lint.sh
beside fuzz fuzz
step "race detector" logged race # not beside the journeys: what it runs waits for real parts, which have limits in time
step "journeys in the lab" journeys
step "lint, beside them" ended lint
step "fuzzing, beside them" ended fuzz

if [ ${#failed[@]} -gt 0 ]; then
	for name in unit fuzz race journeys; do
		failures "_out/$name.log"
	done
	for name in unit fuzz race journeys; do
		briefly "_out/$name.log"
	done
	printf '\nFAILED: %s\n' "${failed[@]}"
	exit 1
fi
printf '\nAll passed in %d s.\n' "$SECONDS"
