# make demo   builds the Debian server, writes it onto a disk, boots the disk
# make test   everything that must pass: checks, the quick loop, the judges, the boots
# Both install what is missing by apt, and say so.

GO        ?= go
BUILD     := build
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
export CGO_ENABLED ?= 0

.PHONY: all programs deps tools demo test quick check judges boots test-netboot scale soak bench bench-peers clean

all: programs

programs:
	$(GO) build -trimpath -ldflags "-s -w" -o $(BUILD)/ ./cmd/imgbuild ./cmd/imgpush

deps:
	@.ci/deps

# Other clients, another registry and validators, into build/judges.
tools: deps
	@.ci/judges $(BUILD)/judges

demo: deps programs
	@.ci/demo $(BUILD)

test: tools check quick judges boots test-netboot

check:
	@.ci/check $(STATICCHECK)

quick:
	$(GO) test ./...

# What other tools say of what we store, and what we say of theirs.
judges: tools
	IMGPIPE_JUDGES=1 IMGPIPE_MUTATIONS=100000 $(GO) test -count=1 -timeout 30m -v ./pkg/oci/sign ./cmd/imgpush -run 'Judges|Mutations'
	IMGPIPE_JUDGES=1 $(GO) test -count=1 -timeout 10m -v ./cmd/imgbuild -run 'Judges'
	IMGPIPE_KILLS=40 $(GO) test -count=1 -timeout 10m -v ./pkg/oci/registry -run 'Killed|Conformance'
	IMGPIPE_JUDGES=1 $(GO) test -count=1 -timeout 10m -v ./pkg/diskimage/sandbox -run 'TestAsOrdinaryUser'
	IMGPIPE_KILLS=40 IMGPIPE_JUDGES=1 $(GO) test -count=1 -timeout 10m -v ./pkg/oci/cache -run 'Killed|Judges'

# Real packages, real firmware, real boots: half an hour without KVM.
boots: deps programs
	@.ci/kernel $(BUILD)/kernel
	IMGPIPE_QEMU=1 IMGPIPE_QEMU_ROOT=$(CURDIR)/$(BUILD)/kernel $(GO) test -count=1 -timeout 30m -v ./pkg/diskimage/boot -run Firmware
	IMGPIPE_NETBOOT=1 IMGPIPE_QEMU_ROOT=$(CURDIR)/$(BUILD)/kernel $(GO) test -count=1 -timeout 30m -v ./cmd/internal/lab -run LocalBoot
	IMGPIPE_QEMU_ROOT=$(CURDIR)/$(BUILD)/kernel $(GO) test -count=1 -v ./pkg/diskimage/initramfs -run Judges
	IMGPIPE_QEMU=1 $(GO) test -count=1 -timeout 30m -v ./cmd/imgpush -run 'TestFirmware'
	IMGPIPE_BOOTS=1 IMGPIPE_QEMU_ROOT=$(CURDIR)/$(BUILD)/kernel $(GO) test -count=1 -timeout 60m -v ./cmd/imgbuild -run 'TestBoots'
	IMGPIPE_BOOTS=1 $(GO) test -count=1 ./cmd/imgpush -run 'TestScripts/retired'
	IMGPIPE_BOOTS=1 $(GO) test -count=1 -timeout 10m -v ./pkg/diskimage/build -run 'TestPackageManagers'

# Empty machines boot from the network, in a namespace of their own, and become
# images, whatever goes wrong: a quarter of an hour without KVM on a machine that
# does nothing else. Debian and its next release are in the demo; `make soak` has
# them as a test, and what takes longer.
test-netboot: deps programs
	IMGPIPE_NETBOOT=1 $(GO) test -count=1 -timeout 90m -v ./cmd/imgpush -run TestNetboot
	IMGPIPE_NETBOOT=1 $(GO) test -count=1 -timeout 10m -v ./pkg/deliver/netboot/netboottest
	IMGPIPE_NETBOOT=1 $(GO) test -count=1 -timeout 10m -v ./cmd/imgpush -run 'TestScale$$'

# Five hundred machines boot and write at once; nginx beside. Minutes.
scale: deps
	IMGPIPE_SCALE=500 $(GO) test -count=1 -timeout 60m -v ./cmd/imgpush -run 'TestScale$$'

# The models of power cuts, and of jobs, with more of everything: minutes.
soak: deps programs
	@.ci/kernel $(BUILD)/kernel
	IMGPIPE_SOAK=1 $(GO) test -count=1 -timeout 60m -v ./pkg/deliver -run 'Power|Sync|EIO'
	IMGPIPE_SOAK=500 $(GO) test -count=1 -timeout 60m -v ./pkg/deliver/netboot/jobs -run Whatever
	IMGPIPE_NETBOOT=1 $(GO) test -count=1 -v ./pkg/deliver/netboot -run ManyMachines
	IMGPIPE_NETBOOT=1 IMGPIPE_SOAK=1 $(GO) test -count=1 -timeout 180m -v ./cmd/imgpush -run 'TestNetboot(Firmware|Debian|Memory|Tampered|OlderImage|LostReport|Places|Cycles|Kexec|IPv6|Hybrid)$$'
	IMGPIPE_BOOTS=1 IMGPIPE_SOAK=1 IMGPIPE_QEMU_ROOT=$(CURDIR)/$(BUILD)/kernel $(GO) test -count=1 -timeout 120m -v ./cmd/imgbuild -run 'TestBoots(Init|Immutable|Slots|SealedSlots|Hybrid)'

bench: tools programs
	@.ci/bench $(BUILD)
	@.ci/bench-store $(BUILD)
	@.ci/bench-deliver $(BUILD)
	PATH=$$PATH:/usr/sbin $(GO) test ./pkg/oci/cache -run NONE -bench Nginx -benchtime 5x
	@.ci/bench-moved $(BUILD)

# Others that build Debian disks, which are installed by apt.
bench-peers: deps programs
	@.ci/bench-peers $(BUILD)

clean:
	rm -rf $(BUILD)
