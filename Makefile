# Everything that people and scripts run. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED ?= 0
export BERTH_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/berth

LAB := $(BERTH_CACHE)/bin/lab -root $(CURDIR)
NODES ?= 2
CROWD ?= 70
SCALE ?= 10000
HOSTILE ?= 20
FAT ?= 1000
RUN ?= Browser|Crashes|Crowd|Killed|Away|Fail|Faults|Lost|Full|Storm|Uninstall

.PHONY: help
help: ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: lab
lab:
	@go build -C hack -buildvcs=false -o $(BERTH_CACHE)/bin/lab ./lab

.PHONY: lab-up
lab-up: lab ## Bring up a cluster of KVM hosts on this machine, with this tree installed (NODES=2).
	@$(LAB) up -nodes $(NODES)

.PHONY: lab-down down
lab-down: lab ## Take it down and remove all of it; binaries stay cached.
	@$(LAB) down
down: lab-down ## The same.

.PHONY: lab-env
lab-env: lab ## Print what a shell needs: eval "$(make -s lab-env)".
	@$(LAB) env

.PHONY: generate
generate: ## Write all generated files: after a change of the API, an RBAC marker or the chart.
	@controller_gen=$$(hack/tool.sh tools/generate); helm=$$(hack/tool.sh lab/components/helm); \
	go build -C hack -buildvcs=false -o $(CURDIR)/_out/generate ./generate; \
	PATH=$$controller_gen:$$helm:$$PATH _out/generate

.PHONY: kubectl-vm
kubectl-vm: ## Build kubectl's plugin, kubectl-vm, into _out/bin.
	@go build -trimpath -o _out/bin/kubectl-vm ./cmd/kubectl-vm

.PHONY: lint
lint: ## Linters, import rules, generated files, sizes.
	@hack/lint.sh

.PHONY: test
test: lab ## All tests: linters, real parts, journeys in a lab (taken down again unless it was up).
	@hack/test.sh

.PHONY: systemd-host
systemd-host: lab ## Test on hosts with systemd, cgroup v2 and AppArmor: emulated Debians (slow).
	@hack/systemd-host.sh

.PHONY: faults soak
faults: DEPTH := 1
faults: lab-up ## The tests of faults as far as the promises go, an hour: 200 kills, 20 reboots, ten minutes without an API server.
soak: DEPTH := 2
soak: lab-up ## The same for a night: a thousand kills, a hundred reboots, half an hour without an API server.
faults soak:
	@eval "$$($(LAB) env)"; go test -v -count=1 -timeout 12h -run '$(RUN)' ./test/e2e -depth $(DEPTH)

.PHONY: demo
demo: lab-up ## Bring up the lab and show a Debian guest that serves the web, with every step explained.
	@hack/demo.sh

.PHONY: bench
bench: lab-up kubectl-vm ## Measure Berth beside bare pods and bare libvirt: figures, timelines of a start and a delete, and _out/bench.json.
	@eval "$$($(LAB) env)"; PATH=$(CURDIR)/_out/bin:$$PATH go run ./test/bench

.PHONY: bench-crowd
bench-crowd: lab-up ## Measure an agent that has 70 guests, and what Berth writes while they idle (CROWD=70).
	@mkdir -p _out; eval "$$($(LAB) env)"; go run ./test/bench -crowd $(CROWD)

.PHONY: bench-hostile
bench-hostile: lab-up ## Measure starts and an agent beside another tenant's 20 VirtualMachines with hostile images (HOSTILE=20).
	@mkdir -p _out; eval "$$($(LAB) env)"; go run ./test/bench -hostile $(HOSTILE)

.PHONY: bench-scale bench-fat
bench-scale: BENCH := -scale $(SCALE)
bench-scale: lab ## Measure the operator with 10 000 VirtualMachines (SCALE=10000), on an API server of its own, ten minutes.
bench-fat: BENCH := -fat $(FAT)
bench-fat: lab ## Measure the operator with 1 000 large VirtualMachines (FAT=1000), on an API server of its own, ten minutes.
bench-scale bench-fat:
	@parts=$$($(LAB) parts); kwok=$$(hack/tool.sh lab/components/kwok); eval "$$parts"; \
	go build -o _out/berth-operator ./cmd/berth-operator; PATH=$$kwok:$$PATH go run ./test/bench $(BENCH)
