# The commands of the project. CONTRIBUTING.md says what each is for.
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO       ?= go
# How long make fuzz runs each target.
FUZZTIME ?= 10m

.PHONY: build demo test check interop fuzz bench clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/fieldferry ./cmd/fieldferry

demo: build
	bin/fieldferry demo

test:
	$(GO) test ./...

check:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags interop ./...
	for os in darwin windows; do GOOS=$$os $(GO) build ./... && GOOS=$$os $(GO) vet ./... || exit 1; done
	$(GO) tool staticcheck -tags interop ./...
	$(GO) test -race ./...

# Tests against real peers, which it installs if they are missing. The tests on the
# wire are held against another broker, to show that they are right.
interop:
	.ci/peers
	$(GO) test -count=1 ./localbroker/conformance -broker mosquitto
	$(GO) test -tags interop -count=1 -timeout 20m -run '^TestInterop' ./...

# Every decoder of bytes from outside, one after another: hours, so no part of check.
# What breaks one stays in its testdata/fuzz, where go test finds it from then on.
fuzz:
	GO=$(GO) .ci/fuzz $(FUZZTIME)

# Benchmarks, then ratios to a plain log, to another broker and to other ways upstream,
# each measured in turns.
# Nothing else should run on the machine.
bench:
	.ci/peers
	$(GO) test -run '^$$' -bench . -benchtime 1s ./...
	$(GO) run ./cmd/fieldbench buffer
	$(GO) run ./cmd/fieldbench broker
	$(GO) run ./cmd/fieldbench bridge
	$(GO) run ./cmd/fieldbench modbus
	$(GO) run ./cmd/fieldbench serial
	$(GO) run ./cmd/fieldbench opcua

clean:
	rm -rf bin
