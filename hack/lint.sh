#!/usr/bin/env bash
# All that `make lint` checks. It changes nothing in the tree, goes on after a
# failure, and ends with a list of what failed.
set -uo pipefail
cd "$(dirname "$0")/.."

crd_limit=80000 # bytes of a kind's CRD
go_limit=32000  # non-blank lines of the product's Go, without tests and generated code

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()

# step NAME COMMAND… runs a check and shows what it says if it fails; of one
# that passes, only lines that begin with "note: ".
step() {
	local name=$1 start=${EPOCHREALTIME/[.,]/} verdict=ok
	shift
	"$@" >"$scratch/out" 2>&1 || verdict=FAILED
	printf '%6d ms  %-7s %s\n' $(((${EPOCHREALTIME/[.,]/} - start) / 1000)) "$verdict" "$name"
	if [ "$verdict" = ok ]; then
		sed -n 's/^note: /           /p' "$scratch/out"
	else
		sed 's/^/           /' "$scratch/out"
		failed+=("$name")
	fi
}

tools() {
	lint=$(hack/tool.sh tools/lint) && generate=$(hack/tool.sh tools/generate) && helm=$(hack/tool.sh lab/components/helm)
}

golangci() ( # FOLDER CONFIG PACKAGES
	cd "$1" && GOLANGCI_LINT_CACHE=$lint/cache "$lint/golangci-lint-kube-api-linter" run -c "$2" "$3"
)

sources() { git ls-files --cached --others --exclude-standard "$@" | while read -r f; do [ -f "$f" ] && echo "$f"; done; }

# generated compares what is generated with what would be, on a copy: what else
# is unfinished in the tree does not matter, nor what is committed.
generated() {
	local copy=$scratch/tree
	sources | tar -c -T - | tar -x -C "$(mkdir -p "$copy" && echo "$copy")" || return
	(cd "$copy/hack" && go build -o "$scratch/generate" ./generate) || return
	(cd "$copy" && PATH=$generate:$helm:$PATH "$scratch/generate") || return
	local status=0 path
	for path in config charts/berth/generated api/v1alpha1; do
		diff -ru "$path" "$copy/$path" || status=1
	done
	[ $status = 0 ] || echo "run: make generate"
	return $status
}

crds() {
	local status=0 file size
	for file in config/crd/*.yaml; do
		size=$(wc -c <"$file")
		echo "note: $file: $size bytes"
		[ "$size" -le "$crd_limit" ] || { echo "$file has $size bytes, more than $crd_limit: drop descriptions of foreign types in hack/generate" && status=1; }
	done
	return $status
}

# lines counts the lines of the files on its input that are not blank.
lines() { xargs -r cat | grep -c '[^[:space:]]'; }

size() {
	local product tests
	product=$(sources '*.go' | grep -vE '_test\.go$|/zz_generated|/testdata/|^(hack|test)/|^internal/host/hosttest/' | lines)
	tests=$(sources '*.go' | grep -E '_test\.go$|/testdata/|^test/|^internal/host/hosttest/' | grep -v ^hack/ | lines)
	echo "note: product $product (at most $go_limit), tests $tests, hack $(sources 'hack/*.go' | lines)"
	[ "$product" -le "$go_limit" ] || { echo "the product has grown to $product non-blank lines of Go: make it smaller" && false; }
}

# vulnerabilities needs Go's database on the internet, or a copy named in GOVULNDB.
vulnerabilities() {
	local db=${GOVULNDB:-https://vuln.go.dev}
	case $db in
	file://*) ;;
	*) curl -fsS -m 10 -o /dev/null "$db/index/db.json" || { echo "note: skipped, $db cannot be reached" && return 0; } ;;
	esac
	"$lint/govulncheck" -db "$db" ./...
}

step "tools" tools
[ ${#failed[@]} = 0 ] || exit 1
step "API conventions" golangci . .kube-api-linter.yml ./api/...
step "linters, product" golangci . .golangci.yml ./...
step "linters, hack" golangci hack ../.golangci.yml ./...
step "go vet, product" go vet ./...
step "go vet, hack" go -C hack vet ./...
step "import rules" go test -count=1 ./test/arch # what go list reads is not in the cache's key
step "generated files" generated
step "chart" "$helm/helm" lint --strict charts/berth
step "size of CRDs" crds
step "lines of Go" size
step "vulnerabilities" vulnerabilities

if [ ${#failed[@]} -gt 0 ]; then
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
