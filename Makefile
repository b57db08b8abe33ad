# Everything here works with Go, gcc, make and git alone. Results are in _output/.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Upstream version, for example v1.37.2 or 1.37; empty means KubeVersion in build/release.go.
KUBE_VERSION ?=
# The supported minor versions. make test and make verify check the patches, the kubelets and
# the hooks of all of them (patches-verify, kubelets, test-hooks), and everything else of the
# default. test-all is for releases.
KUBE_VERSIONS := $(sort $(patsubst patches/v%/series,%,$(wildcard patches/v*/series)))
# Architecture of the kubelets and the control plane; empty means this machine's.
GOARCH ?=
# Target version of patches-rebase; FINISH=1 writes a rebase without conflicts back.
TO ?=
FINISH ?=
# Anything here keeps the clusters of demo, e2e-kind and e2e-kind-node up.
KEEP ?=
# Label filter of test-e2e, test-controlplane, e2e-kind and e2e-kind-node (Ginkgo syntax); empty means all.
LABELS ?=
# Further label filter of test-e2e for the stock kubelet.
STOCK_LABELS ?=
# How often the suites try a spec; one that passed at a later attempt is reported as such.
ATTEMPTS ?= 2
# Workers of e2e-kind: two each of stock and guarded let its parts run at the same time.
FLEET_POOLS ?= stock=2,guarded=2:guarded,blue=2,green=1,red=1
# Kills of a chaos run, and the seed that repeats one; empty takes a seed by chance.
KILLS ?= 200
SEED ?=
# Name of the image that webhook-image builds, and architectures of the packages.
IMAGE ?= localhost/guard/webhook:dev
# Name of the image that installer-image builds.
INSTALLER_IMAGE ?= localhost/guard/installer:dev
# Name of the image that guard-etcd-image builds.
GUARD_ETCD_IMAGE ?= localhost/guard/guard-etcd:dev
PACKAGE_GOARCH ?= amd64 arm64
# Folder that release makes, registry of its images, and the address that it is published at.
# Empty ones are the defaults of guard-build release. BUILDER is for the provenance statement.
RELEASE_DIR ?= _output/release
REGISTRY ?=
RELEASE_URL ?=
BUILDER ?=
# Folder of a release that verify-release checks, and the public key of its signatures.
DIR ?= $(RELEASE_DIR)
KEY ?=
# Folder data/osv of the repository golang/vulndb for vulncheck; empty means the public database.
VULNDB ?=
# Name and pools of a kind cluster; empty pools are the default ones.
NAME ?= guard
POOLS ?=
# Anything here leaves out the long cases of the drill.
SHORT ?=
# Blocks of bench-node, a multiple of 4, and pods of each kind in a block.
BLOCKS ?= 12
PODS ?= 6

# Without the checkout's folder in them, compiled packages and tools hold in every clone.
export GOFLAGS := $(strip $(shell go env GOFLAGS) -trimpath)

# A variable from the command line reaches every recipe's environment; the tools
# themselves must still be built for this machine.
go := env -u GOARCH -u GOOS -u KUBE_VERSION go
guard_build_for := $(go) run ./build/guard-build --kube-version=
guard_build := $(guard_build_for)'$(KUBE_VERSION)'

##@ Build

.PHONY: kubelet
kubelet: ## Build the guarded kubelet: _output/bin/kubelet
	@$(guard_build) kubelet --goarch='$(GOARCH)'

.PHONY: kubelets
kubelets: ## Build the guarded kubelet of each supported minor version: _output/<version>/kubelet
	@for version in $(KUBE_VERSIONS); do $(guard_build_for)"$$version" kubelet --goarch='$(GOARCH)' || exit; done

.PHONY: kubelet-stock
kubelet-stock: ## Build the kubelet without the guard: _output/bin/kubelet-stock
	@$(guard_build) kubelet-stock --goarch='$(GOARCH)'

.PHONY: control-plane
control-plane: ## Build the unpatched control plane and kubectl: _output/<version>/
	@$(guard_build) control-plane --goarch='$(GOARCH)'

.PHONY: node-binaries
node-binaries: ## Build etcd, containerd, runc, CNI plugins and test images: _output/node/bin/
	@$(guard_build) node-binaries

.PHONY: kind-binaries
kind-binaries: ## Build the remaining binaries of a kind cluster: kubeadm, kube-proxy, CoreDNS, pod network: _output/kind/bin/
	@$(guard_build) kind-binaries

.PHONY: kubectl-guard
kubectl-guard: ## Build the kubectl plugin: _output/bin/kubectl-guard
	@CGO_ENABLED=0 $(go) build -trimpath -ldflags='-s -w' -o _output/bin/kubectl-guard ./cmd/kubectl-guard

.PHONY: guard-etcd
guard-etcd: ## Build the program that saves etcd and restores deleted objects in it: _output/bin/guard-etcd
	@CGO_ENABLED=0 $(go) build -trimpath -ldflags='-s -w' -o _output/bin/guard-etcd ./cmd/guard-etcd

.PHONY: guard-webhook
guard-webhook: ## Build the webhook server: _output/bin/guard-webhook
	@CGO_ENABLED=0 $(go) build -trimpath -ldflags='-s -w' -o _output/bin/guard-webhook ./cmd/guard-webhook

.PHONY: guard-installer
guard-installer: ## Build the installer of roll-outs: _output/bin/guard-installer
	@CGO_ENABLED=0 $(go) build -trimpath -ldflags='-s -w' -o _output/bin/guard-installer ./cmd/guard-installer

.PHONY: promtool
promtool: ## Build the checker of alert rules: _output/bin/promtool
	@CGO_ENABLED=0 $(go) -C build/third_party/promtool build -trimpath -ldflags='-s -w' -tags=remove_all_sd \
		-o ../../../_output/bin/promtool github.com/prometheus/prometheus/cmd/promtool

.PHONY: helm
helm: ## Build helm, which tests the chart: _output/bin/helm
	@CGO_ENABLED=0 $(go) -C build/third_party/helm build -trimpath -ldflags='-s -w' -o ../../../_output/bin/helm helm.sh/helm/v4/cmd/helm

.PHONY: cosign
cosign: ## Build cosign, which signs releases: _output/bin/cosign (minutes)
	@CGO_ENABLED=0 $(go) -C build/third_party/cosign build -trimpath -ldflags='-s -w' -o ../../../_output/bin/cosign github.com/sigstore/cosign/v3/cmd/cosign

.PHONY: webhook-image
webhook-image: guard-webhook ## Build the webhook's container image (IMAGE=name:tag; needs Docker)
	@docker build --quiet --file=build/images/webhook/Dockerfile --tag='$(IMAGE)' _output/bin

.PHONY: guard-etcd-image
guard-etcd-image: guard-etcd ## Build the image of guard-etcd (GUARD_ETCD_IMAGE=name:tag; needs Docker)
	@docker build --quiet --file=build/images/etcd/Dockerfile --tag='$(GUARD_ETCD_IMAGE)' _output/bin

.PHONY: failing-kubelets
failing-kubelets: ## Build kubelets that fail on purpose, to test rollback: _output/failing/
	@$(guard_build) failing-kubelets

.PHONY: installer-image
installer-image: kubelet guard-installer ## Build the image with the installer and the guarded kubelet (INSTALLER_IMAGE=name:tag; needs Docker)
	@mkdir -p _output/installer && cp --remove-destination _output/bin/kubelet _output/bin/guard-installer _output/installer/
	@docker build --quiet --file=build/images/installer/Dockerfile --tag='$(INSTALLER_IMAGE)' _output/installer

.PHONY: packages
packages: ## Build deb and rpm of the guarded kubelet for amd64 and arm64: _output/packages/
	@for goarch in $(PACKAGE_GOARCH); do $(guard_build) kubelet --goarch="$$goarch" || exit; done
	@scripts/packages.sh "$$($(guard_build) version)" $(PACKAGE_GOARCH)

.PHONY: binaries
binaries: kubelet kubelet-stock control-plane node-binaries ## Build what a node runs: both kubelets, control plane, third-party binaries

.PHONY: node-e2e
node-e2e: kubectl-guard guard-etcd ## Build the node suite, guard-e2e, the kubectl plugin and guard-etcd: _output/bin/
	@$(go) test -c -o _output/bin/node-e2e.test ./node-e2e/node
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e

.PHONY: controlplane-e2e
controlplane-e2e: ## Build the control plane suite: _output/bin/
	@$(go) test -c -o _output/bin/controlplane-e2e.test ./node-e2e/controlplane

.PHONY: fleet-e2e
fleet-e2e: guard-webhook guard-installer kubectl-guard ## Build the suite of many nodes, the webhook, the installer and the kubectl plugin: _output/bin/
	@$(go) test -c -o _output/bin/fleet-e2e.test ./node-e2e/fleet

.PHONY: drill-e2e
drill-e2e: guard-etcd ## Build the drill and guard-etcd: _output/bin/
	@$(go) test -c -o _output/bin/drill.test ./node-e2e/dataprotection

.PHONY: verify-reproducible
verify-reproducible: ## Build the kubelet again elsewhere with an empty cache and compare the bytes (10 minutes)
	@$(guard_build) kubelet --verify-reproducible --goarch='$(GOARCH)'

##@ See it

.PHONY: demo
demo: binaries node-e2e ## Run the incidents on the stock and the guarded kubelet and print a table (KEEP=1 leaves the clusters up)
	@$(go) run ./node-e2e/guard-e2e demo $(if $(KEEP),--keep)

##@ Test

.PHONY: test
test: ## Run unit tests, tests of the alerts and the chart, upstream's kubelet tests in the guarded tree, the suites of the node, the control plane and the fleet, and the drill without its long cases
	@scripts/test.sh

# What the suites of make test need, in one go. What the incidents do to the stock kubelet is
# shown by make demo and make test-e2e.
.PHONY: test-programs
test-programs: binaries kubelets kind-binaries failing-kubelets promtool helm node-e2e controlplane-e2e fleet-e2e drill-e2e ## Build what make test needs
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e

.PHONY: test-unit
test-unit: ## Run the unit tests, those of the guard with the race detector
	@$(guard_build) unit --race=./pkg/... ./...

.PHONY: test-upstream
test-upstream: ## Run upstream's kubelet tests and the hook tests in the guarded tree, and compare the table of stop paths with it
	@status=0; $(guard_build) stop-paths --check || status=1; $(guard_build) test || status=1; exit $$status

.PHONY: test-hooks
test-hooks: ## Run the tests of the hooks for each supported minor version (KUBE_VERSION=... tests one)
	@status=0; for version in $(or $(KUBE_VERSION),$(KUBE_VERSIONS)); do \
		echo "== Kubernetes $$version"; $(guard_build_for)"$$version" test --hooks || status=1; \
	done; exit $$status

# An older kubelet joins a control plane of its own version, and the newest.
.PHONY: test-all
test-all: binaries kubelets node-e2e guard-webhook controlplane-e2e ## For each supported minor version: upstream's tests, the tests of the hooks, the proof, and the suites of the node and the control plane (hours)
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e
	@status=0; default=$$($(guard_build_for) version); for version in $(KUBE_VERSIONS); do \
		echo "== Kubernetes $$version"; \
		$(guard_build_for)"$$version" stop-paths --check || status=1; \
		$(guard_build_for)"$$version" test || status=1; \
		$(guard_build_for)"$$version" prove || status=1; \
		$(guard_build_for)"$$version" control-plane || status=1; \
		$(guard_build_for)"$$version" kubelet-stock || status=1; \
		kubelet=$$($(guard_build_for)"$$version" version); \
		for control_plane in $$(printf '%s\n' "$${kubelet%%+*}" "$${default%%+*}" | sort -u); do \
			_output/bin/guard-e2e run --kubelet=guarded --kubelet-version="$${kubelet%%+*}" --control-plane-version="$$control_plane" --attempts='$(ATTEMPTS)' || status=1; \
		done; \
		_output/bin/guard-e2e controlplane --kubernetes-version="$${kubelet%%+*}" --attempts='$(ATTEMPTS)' || status=1; \
	done; exit $$status

.PHONY: test-e2e
test-e2e: binaries node-e2e ## Run the node suite on the stock and the guarded kubelet (LABELS='...' selects specs)
	@$(go) run ./node-e2e/guard-e2e run --kubelet=stock,guarded --attempts='$(ATTEMPTS)' $(if $(LABELS),--label-filter='$(LABELS)') \
		$(if $(STOCK_LABELS),--stock-label-filter='$(STOCK_LABELS)')

.PHONY: chaos
chaos: kubelet control-plane node-binaries node-e2e ## Kill the kubelet at random moments (KILLS=200 SEED=... repeats a run; 12 minutes)
	@$(go) run ./node-e2e/guard-e2e chaos --kills='$(KILLS)' --seed='$(or $(SEED),0)'

.PHONY: test-controlplane
test-controlplane: kubelet control-plane node-binaries guard-webhook kubectl-guard controlplane-e2e ## Run the control plane suite on a cluster with the webhook in it (LABELS='...' selects specs)
	@$(go) run ./node-e2e/guard-e2e controlplane --attempts='$(ATTEMPTS)' --label-filter='$(LABELS)'

.PHONY: drill
drill: control-plane node-binaries drill-e2e ## Delete and damage what a control plane has, restore it with guard-etcd, and print the figures (OBJECTS=1000)
	@mkdir -p _output/e2e
	@$(if $(SHORT),,$(guard_build_for)'$(firstword $(KUBE_VERSIONS))' control-plane)
	@older=$$($(guard_build_for)'$(firstword $(KUBE_VERSIONS))' version) || exit; \
		_output/bin/drill.test -test.run='^Test(Drill|AccessRecipe)$$' -test.timeout=60m -test.v $(if $(SHORT),-test.short,-older="$${older%%+*}") -output=_output -objects='$(or $(OBJECTS),1000)' \
		-table=_output/e2e/drill.md > _output/drill.log 2>&1; status=$$?; \
		[[ $$status -eq 0 ]] || { grep -A 20 '^ *--- FAIL' _output/drill.log; echo 'See _output/drill.log'; }; \
		cat _output/e2e/drill.md; count() { grep -c "^    --- $$1" _output/drill.log; }; \
		echo "$$(count PASS) passed, $$(count FAIL) failed, $$(count SKIP) skipped"; exit $$status

.PHONY: drill-scale
drill-scale: control-plane node-binaries drill-e2e ## Measure time and memory of guard-etcd with 100,000 objects and 1 GB (OBJECTS=100000; 12 GB of memory)
	@mkdir -p _output/e2e
	@_output/bin/drill.test -test.run='^TestScale$$' -test.timeout=60m -test.v -output=_output -scale-objects='$(or $(OBJECTS),100000)' \
		-table=_output/e2e/drill-scale.md > _output/drill-scale.log 2>&1; status=$$?; \
		[[ $$status -eq 0 ]] || { grep -A 20 '^ *--- FAIL' _output/drill-scale.log; echo 'See _output/drill-scale.log'; }; \
		cat _output/e2e/drill-scale.md; exit $$status

.PHONY: test-drill
test-drill: ## Run the drill without its long cases
	@$(MAKE) --no-print-directory drill SHORT=1

.PHONY: compare-recovery
compare-recovery: kubelet control-plane node-binaries guard-etcd ## Recover from three accidents with guard-etcd, a whole restore and an export by kubectl, and write held pods into an empty etcd (needs root; 20 minutes)
	@mkdir -p _output/e2e; rm -f _output/e2e/compare-recovery.md
	@$(go) test -c -o _output/bin/drill.test ./node-e2e/dataprotection
	@_output/bin/drill.test -test.run='^TestCompareRecovery$$' -test.timeout=90m -test.v -output=_output -compare=_output/e2e/compare-recovery.md \
		> _output/compare-recovery.log 2>&1; status=$$?; \
		[[ $$status -eq 0 ]] || { grep -A 20 '^ *--- FAIL' _output/compare-recovery.log; echo 'See _output/compare-recovery.log'; }; \
		cat _output/e2e/compare-recovery.md; exit $$status

.PHONY: e2e-kind
e2e-kind: binaries kind-binaries failing-kubelets fleet-e2e ## Run the fleet suite on a kind cluster of stock and guarded nodes (LABELS='...' selects specs, KEEP=1 leaves the cluster up)
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e
	@_output/bin/guard-e2e kind run --name=fleet --pools='$(FLEET_POOLS)' $(if $(KEEP),--keep) --logs=_output/e2e/fleet/nodes -- \
		_output/bin/guard-e2e fleet --provider=kind --cluster=fleet $(if $(KEEP),--keep) --label-filter='$(LABELS)' --attempts='$(ATTEMPTS)' \
		> _output/fleet-e2e.log; status=$$?; cat _output/fleet-e2e.log; exit $$status

.PHONY: test-fleet
test-fleet: ## Run the fleet suite without its long specs, as in make test
	@$(MAKE) --no-print-directory e2e-kind LABELS='!long'

# Of the previous minor version are the cluster's first programs, of the default one those that
# it is upgraded to.
.PHONY: test-upgrade
test-upgrade: UPGRADE_FROM = $(lastword $(filter-out $(lastword $(KUBE_VERSIONS)),$(KUBE_VERSIONS)))
test-upgrade: binaries kind-binaries fleet-e2e ## Upgrade a kind cluster by a minor version in kubeadm's order, with a guarded pool by kubectl guard rollout (11 minutes)
	@for target in kubelet kubelet-stock control-plane kind-binaries; do $(guard_build_for)'$(UPGRADE_FROM)' "$$target" || exit; done
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e
	@from=$$($(guard_build_for)'$(UPGRADE_FROM)' version); \
	_output/bin/guard-e2e kind run --name=upgrade --kube-version="$${from%%+*}" --pools=blue=2,green=1 $(if $(KEEP),--keep) --logs=_output/e2e/fleet/nodes -- \
		_output/bin/guard-e2e fleet --provider=kind --cluster=upgrade $(if $(KEEP),--keep) --label-filter=upgrade \
		> _output/upgrade-e2e.log; status=$$?; cat _output/upgrade-e2e.log; exit $$status

.PHONY: e2e-kind-node
e2e-kind-node: binaries kind-binaries node-e2e ## Run the node suite on a stock and a guarded worker of one kind cluster (LABELS='...' selects specs, KEEP=1 leaves the cluster up)
	@$(go) build -o _output/bin/guard-e2e ./node-e2e/guard-e2e
	@_output/bin/guard-e2e kind run --name=node --pools=stock=1,guarded=1:guarded --logs=_output/e2e/nodes $(if $(KEEP),--keep) -- \
		_output/bin/guard-e2e run --provider=kind --cluster=node --attempts='$(ATTEMPTS)' --label-filter='$(LABELS)'

.PHONY: kind-up
kind-up: binaries kind-binaries ## Bring a kind cluster up with stock and guarded nodes, without a registry (NAME=guard POOLS=...)
	@$(go) run ./node-e2e/guard-e2e kind up --name='$(NAME)' $(if $(POOLS),--pools='$(POOLS)')

.PHONY: kind-down
kind-down: ## Take the kind cluster down (NAME=guard)
	@$(go) run ./node-e2e/guard-e2e kind down --name='$(NAME)'

.PHONY: test-alerts
test-alerts: promtool ## Check the alert rules and run their tests with Prometheus' own engine
	@_output/bin/promtool check rules --lint=all --lint-fatal manifests/monitoring/rules/kubelet-guard.yaml
	@tests=manifests/monitoring/rules/kubelet-guard_test.yaml; \
	if _output/bin/promtool test rules "$$tests"; then \
		echo "$$(grep -c '^  - name: ' "$$tests") passed, 0 failed"; \
	else \
		echo '0 passed, 1 failed'; exit 1; \
	fi

.PHONY: test-kubelets
test-kubelets: kubelets ## Try the kubelet of each supported minor version on configurations that it must accept or refuse, as a roll-out does first
	@$(guard_build) unit ./cmd/guard-installer/internal/kubelettrial

.PHONY: test-chart
test-chart: helm ## Lint the Helm chart, compare its objects with those of the overlays, and try values that are errors
	@HELM=$(CURDIR)/_output/bin/helm $(guard_build) unit ./build/guard-chart

.PHONY: test-cosign
test-cosign: cosign ## Sign a release with cosign and a local key, without services, and compare what cosign and verify-release accept
	@COSIGN=$(CURDIR)/_output/bin/cosign $(go) test -run='^TestSignaturesWithCosign$$' ./build/release

.PHONY: e2e-cgroup2
e2e-cgroup2: binaries node-e2e ## Run the incidents, and a clock that jumps, on a node with cgroup v2, in an emulated machine (LABELS='...' selects specs; 30 minutes)
	@$(go) run ./node-e2e/guard-e2e vm suite --kubelet=stock --label-filter=cgroup2
	@$(go) run ./node-e2e/guard-e2e vm suite --label-filter='$(or $(LABELS),incident || clock)'

.PHONY: test-packages
test-packages: PACKAGE_GOARCH = $(shell go env GOARCH)
test-packages: packages binaries ## Install, use and remove deb and rpm on a node with systemd, in an emulated machine (up to an hour)
	@$(go) test -c -o _output/bin/packages-e2e.test ./node-e2e/packages
	@$(go) run ./node-e2e/guard-e2e vm packages

.PHONY: test-rollout-vm
test-rollout-vm: binaries failing-kubelets guard-installer kubectl-guard ## Roll out to a kubeadm node with systemd and cgroup v2, with broken builds, a killed installer and a reset, in an emulated machine (up to an hour)
	@$(go) test -c -o _output/bin/rollout-e2e.test ./node-e2e/rollout
	@_output/bin/rollout-e2e.test -test.run='^TestRollOut$$' -test.timeout=0 -test.v -output=_output -manifests=manifests > _output/rollout-e2e.log 2>&1; status=$$?; \
		[[ $$status -eq 0 ]] || { grep -A 20 '^    --- FAIL' _output/rollout-e2e.log; echo 'See _output/rollout-e2e.log and _output/cgroup2/results/console.log'; }; \
		grep -E ' (PASSED|FAILED): ' _output/rollout-e2e.log; \
		echo "$$(grep -c ' PASSED: ' _output/rollout-e2e.log) passed, $$(grep -c ' FAILED: ' _output/rollout-e2e.log) failed"; exit $$status

.PHONY: prove
prove: ## Disable each hook in turn and fail if the tests still pass (30 minutes)
	@$(guard_build) prove

.PHONY: stop-paths
stop-paths: ## Compare the table of all stop paths with the guarded tree (30 seconds)
	@$(guard_build) stop-paths --check

.PHONY: bench
bench: ## Measure what a decision costs
	@$(go) test -run='^$$' -bench=. -benchmem ./pkg/kubelet/guard

.PHONY: bench-node
bench-node: binaries node-e2e ## Compare pod start, pod deletion, CPU and memory with the stock kubelet (BLOCKS=12 PODS=6; 15 minutes)
	@$(go) run ./node-e2e/guard-e2e bench --blocks='$(BLOCKS)' --pods='$(PODS)'
	@$(go) tool benchstat -col /kubelet _output/e2e/guarded/bench.txt

.PHONY: load-node
load-node: binaries node-e2e ## Count the API requests of a node with 110 held pods (LOAD_PODS=110; 75 minutes)
	@$(go) run ./node-e2e/guard-e2e load --pods='$(or $(LOAD_PODS),110)'

.PHONY: counters
counters: binaries node-e2e ## Count what a pod's life costs with both kubelets and write the table into docs/performance.md (needs strace; 8 minutes)
	@mkdir -p _output/e2e/guarded
	@$(go) test -run='^$$' -bench=Refuse -benchmem ./pkg/kubelet/guard > _output/e2e/guarded/decisions.txt
	@_output/bin/node-e2e.test -test.run='^TestNode$$' -kubelet=guarded -cluster=counters -output=_output -manifests=manifests \
		-counters=docs/performance.md -counters-bench=_output/e2e/guarded/decisions.txt \
		-ginkgo.label-filter=counters -ginkgo.no-color > _output/counters.log; status=$$?; \
		[[ $$status -eq 0 ]] || { sed -n '/^  \[FAILED\]/,/^  In /p' _output/counters.log; echo 'See _output/counters.log'; }; exit $$status

.PHONY: bench-webhook
bench-webhook: kubelet control-plane node-binaries guard-webhook controlplane-e2e ## Measure the webhook: pod deletion with 10 and 10,000 budgets on a cluster; memory, node deletion and reviews in a large one (15 minutes)
	@$(go) test -run='^$$' -bench=Index -benchmem ./pkg/admission/rules/poddeletion
	@$(go) test -run='^$$' -bench=Judge -benchmem ./pkg/admission/rules/nodedeletion
	@$(go) test -c -o _output/bin/webhookscale.test ./node-e2e/webhookscale
	@status=0; \
	_output/bin/controlplane-e2e.test -test.run='^TestControlPlane$$' -cluster=bench-webhook -output=_output -manifests=manifests \
		-bench -ginkgo.label-filter=bench -ginkgo.no-color > _output/bench-webhook.log || status=1; \
	_output/bin/webhookscale.test -test.run='^TestScale$$' -test.timeout=30m -strict -webhook=_output/bin/guard-webhook -manifests=manifests \
		-table=_output/e2e/controlplane/webhook-scale.md > _output/webhook-scale.log || { tail -n 40 _output/webhook-scale.log; status=1; }; \
	cat _output/e2e/controlplane/webhook-scale.md; exit $$status

.PHONY: bench-rollout
bench-rollout: ## Count the API requests of the installers of 5,000 nodes, and of kubectl guard (FLEET=5000; 20 minutes)
	@mkdir -p _output/e2e; rm -f _output/e2e/rollout-scale.md; status=0; \
	$(go) test -run='^TestRequestsOfAFleet$$' -timeout=60m -v ./cmd/guard-installer/internal/node \
		-fleet='$(or $(FLEET),5000)' -table=$(CURDIR)/_output/e2e/rollout-scale.md > _output/rollout-scale.log || status=1; \
	$(go) test -run='^TestAFleet$$' -timeout=10m -v ./cmd/kubectl-guard \
		-fleet='$(or $(FLEET),5000)' -table=$(CURDIR)/_output/e2e/rollout-scale.md >> _output/rollout-scale.log || status=1; \
	[[ $$status -eq 0 ]] || tail -n 40 _output/rollout-scale.log; \
	cat _output/e2e/rollout-scale.md; exit $$status

.PHONY: verify
verify: ## Check format, vet, staticcheck, scripts, patches and generated files
	@scripts/verify.sh

##@ Release

.PHONY: release
release: ## Make the folder of a release, of all supported versions or KUBE_VERSION=1.36,1.37: _output/release/ (REGISTRY=... RELEASE_URL=...)
	@$(guard_build) release --output='$(RELEASE_DIR)' $(if $(REGISTRY),--registry='$(REGISTRY)') $(if $(RELEASE_URL),--url='$(RELEASE_URL)') \
		$(if $(BUILDER),--builder='$(BUILDER)')

.PHONY: verify-release
verify-release: ## Check the folder of a release as a user would (DIR=_output/release KEY=cosign.pub)
	@$(guard_build) verify-release '$(DIR)' --key='$(KEY)'

.PHONY: vulncheck
vulncheck: ## Compare govulncheck's findings in programs and kubelets with their verdicts (VULNDB=folder; needs the internet without it)
	@$(guard_build) vulncheck --db='$(VULNDB)'

##@ Patches

.PHONY: patches-apply
patches-apply: ## Make the work tree _output/edit/v1.NN, one commit per patch
	@$(guard_build) patches apply

.PHONY: patches-export
patches-export: ## Write the commits of the work tree back to patches/v1.NN
	@$(guard_build) patches export

.PHONY: patches-verify
patches-verify: ## Check that each series is complete, small, applies without fuzz and exports to the same bytes (KUBE_VERSION=... checks one)
	@status=0; for version in $(or $(KUBE_VERSION),$(KUBE_VERSIONS)); do $(guard_build_for)"$$version" patches verify || status=1; done; exit $$status

.PHONY: patches-rebase
patches-rebase: ## Carry the series over to another upstream version (TO=v1.37.4)
	@$(guard_build) patches rebase --to='$(TO)' $(if $(FINISH),--finish)

.PHONY: series
series: ## Write the series with the guard package as mails for git am: _output/series/<version>/
	@$(guard_build) patches series

##@ Housekeeping

.PHONY: generate
generate: ## Write everything that is made from code or patches
	@$(go) generate ./...
	@$(guard_build) patches readme
	@$(guard_build) stop-paths --write

.PHONY: clean
clean: ## Remove _output, unless a cluster runs in it
	@scripts/clean.sh

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
