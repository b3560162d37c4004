package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBootsRecipes builds the recipes that no other boot test has, as they are, and
// boots each until its own section test is content.
func TestBootsRecipes(t *testing.T) {
	for name, more := range map[string]func(h *house, ref string){
		"debian-minimal":  nil,
		"edge":            nil, // TestBootsSlots has its updates
		"edge-sealed":     nil, // and TestBootsSealedSlots those of this one
		"kubernetes-node": (*house).isNode,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			ref := "oci:" + h.dir + "/images:" + name
			recipe := filepath.Join(h.recipes("recipes"), name+".yaml")
			args := []string{"build", recipe, "-o", ref, "--cache", h.cache}
			if name == "debian-minimal" { // the second build starts from nothing but packages
				h.run(h.imgbuild, "lock", recipe, "--cache", h.cache)
				args = append(args, "--locked", "--verify")
			}
			h.run(h.imgbuild, args...)
			if more != nil {
				more(h, ref)
				return
			}
			h.run(h.imgbuild, "test", ref, "--timeout", "15m")
		})
	}
}

// isNode writes the image as a machine gets it and asks that machine for what
// kubeadm's preflight checks want: a runtime that answers, modules, parameters, no swap.
func (h *house) isNode(ref string) {
	h.t.Helper()
	disk := h.write("disk.raw", "")
	if err := os.Truncate(disk, 8<<30); err != nil {
		h.t.Fatal(err)
	}
	userData := h.write("user-data", `#cloud-config
runcmd:
  - |
    missing=
    ctr version >/dev/null || missing="$missing runtime"
    grep -q 'SystemdCgroup = true' /etc/containerd/config.toml || missing="$missing cgroup-driver"
    for m in overlay br_netfilter ip_vs nf_conntrack; do grep -q "^$m " /proc/modules || missing="$missing $m"; done
    for p in net/ipv4/ip_forward net/bridge/bridge-nf-call-iptables net/ipv6/conf/all/forwarding; do
      [ "$(cat /proc/sys/$p)" = 1 ] || missing="$missing $p"
    done
    for c in conntrack ethtool iptables mount socat tc; do
      command -v $c >/dev/null || missing="$missing $c"
    done
    [ -z "$(swapon --show --noheadings)" ] || missing="$missing no-swap"
    [ -x /opt/cni/bin/bridge ] || missing="$missing cni"
    [ -z "$(systemctl --failed --plain --no-legend)" ] || missing="$missing $(systemctl --failed --plain --no-legend)"
    echo "node $(hostname): missing [$missing ]" >/dev/ttyS0
`)
	h.run(h.imgpush, "write", ref, disk, "--yes", "--insecure-no-signature", "--hostname", "node-1", "--user-data", userData)
	h.run(h.imgbuild, "test", "--disk", disk, "--timeout", "15m", "--log", filepath.Join(h.dir, "console"),
		"--expect", "node node-1: missing [ ]", "--reject", "Kernel panic", "--reject", "Failed to start")
}
