#!/usr/bin/env bash
# Builds the tools that a module pins with `tool` directives, once, and prints
# the folder that holds them:
#
#   hack/tool.sh tools/lint        golangci-lint, with kube-api-linter linked in
#
# They are kept outside the clone, under a key of all that they are made from.
set -euo pipefail

source=$(cd "$(dirname "$0")" && pwd)/$1
tools=${BERTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth}/tools
name=$(basename "$1")
key=$({ cat "$source/go.mod" "$source/go.sum" "$0" && go env GOVERSION; } | sha256sum | cut -c1-12)
dir=$tools/$name-$key

if [ ! -d "$dir" ]; then
	mkdir -p "$tools"
	exec 9>"$tools/$name-lock" # two clones may build at once
	flock 9
fi
if [ ! -d "$dir" ]; then
	echo "building the tools of hack/$1 (once; minutes on a small machine)" >&2
	rm -rf "$tools/$name-"*.part
	cd "$source"
	CGO_ENABLED=0 GOFLAGS='' GOWORK=off go build -trimpath -ldflags '-s -w' -o "$dir.part/" tool
	find "$tools" -maxdepth 1 -type d -name "$name-*" ! -name "*.part" -exec rm -rf {} + # of other versions
	mv "$dir.part" "$dir"
fi
echo "$dir"
