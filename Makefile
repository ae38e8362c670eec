# What can be made is listed by `make`. Only Go, make and a C compiler are needed; the rest is found, built or installed.

GO       ?= go
FUZZTIME ?= 20s
BENCH_TIME ?= 200ms
BENCH_OPS ?= 1000000
BENCH_OBJECTS ?= 1000000
MINUTES  ?= 1
SEED     ?= 0
# make unit leaves out what takes long (testing.Short). make test does not.
SHORT    ?= -short
# The tests of these start no goroutine: the race detector would find nothing there, and take most of the time of a short run.
# test/arrows holds them to that.
SERIAL   := cmd/hsm-kms/internal/config cmd/hsm-kms/internal/doctor cmd/hsm-kms/internal/operator/state \
            cmd/hsm-kms/internal/retire cmd/hsm-kms/internal/sources envelope/stored evidence/boltfile evidence/encconfig \
            evidence/gate evidence/manifest hsm/modulefile hsm/pinfile internal/duration internal/hint \
            internal/ownedfile kmsplugin/hold/holdfile kmsplugin/problem manifests test/arrows test/bench/apiserver \
            test/demo/record test/docs test/tools/bom test/tools/image test/tools/release
# A short run tests these without it too, as they start hundreds of processes, or simulate days; make test keeps it there.
COSTLY   := cmd/hsm-kms cmd/hsm-kms/internal/operator
PLAIN     = $(COSTLY) $(SERIAL)
# A short run tests twice as many packages at once as there are processors, because some tests mostly wait. A long one does not:
# what takes the processors for minutes would slow down what has a time limit.
AT_ONCE   = $(if $(SHORT),-p $$((2 * $$(getconf _NPROCESSORS_ONLN))))
IMAGE    ?= localhost/hsm-kms
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT   := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# PKCS#11 modules are loaded by C code.
export CGO_ENABLED = 1

# What judges manifests, where the machine has it not: test/tools/need.sh checkers unpacks it there.
CHECKERS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hsm-kms/checkers
export PATH := $(PATH):$(CHECKERS)/bin

.DEFAULT_GOAL := help
.PHONY: help build demo recording test unit e2e bench bench-evidence bench-apiserver soak cluster compat lint fuzz release image tools need tokens
# Where the tokens of test/tokens can be installed and namespaces be made, none of their tests may be skipped.
ALL_TOKENS := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && unshare --mount --ipc --pid --fork true 2>/dev/null && echo 1)

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

build: ## the program: bin/hsm-kms
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/hsm-kms ./cmd/hsm-kms

# The demo is run as a program of its own and not by `go run`, which would leave it behind when it is itself killed.
demo: need build ## the whole story on this machine: token, key, plugin, API server, a Secret and its bytes in etcd
	@$(GO) build -o bin/demo ./test/demo
	@exec bin/demo -bin bin/hsm-kms

recording: need build ## docs/demo.svg: the demo again, recorded
	@$(GO) build -o bin/demo ./test/demo
	@$(GO) run ./test/demo/record -o docs/demo.svg bin/demo -bin bin/hsm-kms

test: export HSM_KMS_REQUIRE_TOKENS = $(ALL_TOKENS)
test: SHORT =
test: tokens unit e2e ## every test
	$(GO) test -shuffle=on ./cmd/hsm-kms/internal/operator # every case; with the race detector a sample runs
	HSM_KMS_BIN=$(CURDIR)/bin/hsm-kms GO=$(GO) test/tools/compat.sh -cached
	$(GO) test -tags e2e -count=1 -timeout 30m ./test/release
	@$(MAKE) --no-print-directory cluster WHERE='where able'

# A program with the race detector sleeps for a second at its end, to catch races of what still runs. Our tests wait for what
# they start, and dozens of binaries would sleep.
unit: export GORACE = atexit_sleep_ms=0
unit: need ## the quick tests: race detector where there are goroutines, random order
	$(if $(SHORT),$(GO) test $(AT_ONCE) -shuffle=on $(SHORT) $(PLAIN:%=./%))
	$(GO) test -race $(AT_ONCE) -shuffle=on -timeout 20m $(SHORT) $$($(GO) list ./hsm ./... $(if $(SHORT),| grep -v $(PLAIN:%=-e '/hsm-kms/%$$') -e /test/hardening))
	CGO_ENABLED=0 $(GO) test ./envelope/...

e2e: need build tools ## the tests against a real kube-apiserver and etcd
	@test/tools/need.sh opensc
	HSM_KMS_BIN=$(CURDIR)/bin/hsm-kms $(GO) test -tags e2e -p 1 -count=1 -shuffle=on -parallel 4 -timeout 20m ./test/kube ./test/e2e ./test/evidence/... ./test/bench/evidence ./test/manifests

bench: need build ## latency, rate, growth and what a fault costs, against the bare token and an empty plugin
	@$(GO) build -o bin/bench ./test/bench
	@bin/bench -bin bin/hsm-kms -time $(BENCH_TIME) -ops $(BENCH_OPS)
	@GO=$(GO) test/tools/benchstat.sh bin/bench-results

bench-evidence: need build tools ## etcd report and verify over BENCH_OBJECTS (1,000,000) Secrets, and etcd migrate: time and memory
	@$(GO) build -o bin/bench-evidence ./test/bench/evidence
	@exec bin/bench-evidence -bin bin/hsm-kms -objects $(BENCH_OBJECTS)

bench-apiserver: need build tools ## a kube-apiserver's start, list, create and get with hsm-kms, HSM there and away, aescbc and nothing; QUICK=1 for a look
	@$(GO) build -o bin/bench-apiserver ./test/bench/apiserver
	@exec bin/bench-apiserver -bin bin/hsm-kms $(if $(QUICK),-quick)

soak: need build ## load and faults mixed for MINUTES (1); SEED of an earlier run gives the same faults
	@$(GO) build -o bin/soak ./test/soak
	@exec bin/soak -bin bin/hsm-kms -minutes $(MINUTES) -seed $(SEED)

# A program of its own and not `go test`, so that Ctrl-C reaches it alone and it clears up.
cluster: need build ## installs hsm-kms on nodes with systemd, kubelet and kubeadm, as root; RUN=TestSystemd for one part, FULL=1 for three nodes too
	@test/tools/need.sh cluster
	@$(GO) test -tags e2e -c -o bin/cluster ./test/cluster
	@cd test/cluster && HSM_KMS_CLUSTER='$(or $(WHERE),1)' HSM_KMS_CLUSTER_FULL='$(FULL)' HSM_KMS_BIN=$(CURDIR)/bin/hsm-kms exec $(CURDIR)/bin/cluster -test.v -test.timeout 60m -test.run '$(RUN)'

compat: need build ## the core of e2e on kube-apiserver of RELEASE (1.31); without it on all, 1.30 to 1.37, built first if need be
	@HSM_KMS_BIN=$(CURDIR)/bin/hsm-kms GO=$(GO) test/tools/compat.sh $(RELEASE)

lint: ## gofmt, vet, staticcheck, govulncheck, shellcheck
	@GO=$(GO) test/tools/lint.sh

fuzz: need ## each fuzz target for FUZZTIME (20s)
	@GO=$(GO) FUZZTIME=$(FUZZTIME) test/tools/fuzz.sh

release: ## dist/: archives and packages for Linux, SBOMs, provenance, checksums: the same bytes from every clone; RELEASE_KEY signs
	@GO=$(GO) test/tools/release.sh

image: release ## dist/: an OCI image of each archive, made without Docker; IMAGE=registry.example.com/hsm-kms for its name
	@$(GO) run ./test/tools/image -name $(IMAGE)
	@test/tools/sign.sh

tools: ## finds or builds kube-apiserver and etcd; the last line is their folder
	@$(GO) build -o bin/tools ./test/tools
	@exec bin/tools

need:
	@test/tools/need.sh

tokens: need
	@test/tools/need.sh tokens checkers
