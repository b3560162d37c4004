package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// tagger is a program that joins VLAN 5 of one interface to another without tags,
// as a switch does: not every kernel that tests run on has VLANs.
func tagger() {
	if err := tag(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const vlanOfTests = 5

func tag(tagged, plain string) error {
	in, err := packets(tagged)
	if err != nil {
		return err
	}
	out, err := packets(plain)
	if err != nil {
		return err
	}
	fmt.Println("joined")
	ended := make(chan error, 2)
	join := func(from, to int, f func(frame []byte, vlan int) []byte) {
		b, oob := make([]byte, 64<<10), make([]byte, 256)
		for {
			n, on, _, from6, err := unix.Recvmsg(from, b, oob, 0)
			if err != nil {
				ended <- err
				return
			}
			if l, ok := from6.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if frame := f(b[:n], vlanOf(oob[:on])); frame != nil {
				_, _ = unix.Write(to, frame) // as a wire: it may be lost
			}
		}
	}
	go join(in, out, func(frame []byte, vlan int) []byte {
		if vlan != vlanOfTests {
			return nil
		}
		return frame
	})
	go join(out, in, func(frame []byte, _ int) []byte {
		head := append([]byte(nil), frame[:12]...)
		return append(binary.BigEndian.AppendUint16(append(head, 0x81, 0), vlanOfTests), frame[12:]...)
	})
	return <-ended
}

func packets(name string) (int, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL << 8 // in the network's byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}
	return fd, err
}

// vlanOf reads the tag that the kernel took off (packet(7), PACKET_AUXDATA); 0:
// there was none.
func vlanOf(oob []byte) int {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range all {
		if m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20 && binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
			return int(binary.NativeEndian.Uint16(m.Data[16:]) & 0xfff)
		}
	}
	return 0
}

// TestNetbootVLAN holds that an environment whose command line says so gets its
// address in a VLAN, and none on the card itself, where another server would give
// it one.
func TestNetbootVLAN(t *testing.T) {
	dir := netbootForge(t).exported(t)
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "tagger"))
	}
	if err != nil {
		t.Fatal(err)
	}
	l := netlab.New(t, netlab.Options{})
	l.In("ip", "link", "add", "inside", "type", "veth", "peer", "name", "switch")
	l.In("ip", "addr", "add", "10.80.0.1/24", "dev", "inside")
	l.In("ip", "link", "set", "inside", "up")
	l.In("ip", "link", "set", "switch", "up")
	l.Start("tagger", filepath.Join(dir, "tagger"), netlab.Bridge, "switch").Wait(time.Minute, "joined")
	var servers []*netlab.Process
	for _, s := range [][2]string{{"inside", "10.80.0.100,10.80.0.150"}, {netlab.Bridge, "10.77.0.100,10.77.0.150"}} {
		p := l.Start("dnsmasq-"+s[0], "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface="+s[0], "--bind-interfaces",
			"--dhcp-range="+s[1]+",1h", "--dhcp-leasefile="+filepath.Join(dir, s[0]), "--log-dhcp")
		p.Wait(time.Minute, "DHCP, IP range")
		servers = append(servers, p)
	}
	m := l.Machine(direct(dir, "vlan=eth0.5:eth0 ip=eth0.5:dhcp"))
	m.PowerOn()
	m.Wait(bootTime, "imgpipe agent", "eth0.5: link", "eth0.5: address 10.80.0.1")
	servers[0].Wait(time.Minute, "DHCPACK(inside)")
	if servers[1].Has("DHCPDISCOVER") {
		t.Errorf("the card itself asked:\n%s", servers[1].Tail(2000))
	}
}

// exported is a directory with the environment's files.
func (f forge) exported(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := f.run(f.imgbuild, "export", "oci:"+f.store+"/environment:1", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// direct is a machine that has the environment without asking the network for it,
// with a command line of its own.
func direct(dir, cmdline string) netlab.Spec {
	return netlab.Spec{Name: "one", Number: 1, Firmware: netlab.BIOS, MemoryMiB: 512, Extra: []string{"-kernel", filepath.Join(dir, "vmlinuz"),
		"-initrd", filepath.Join(dir, "initramfs.zst"), "-append", "console=ttyS0 panic=10 " + cmdline}}
}

// TestNetbootIPv6 holds that a machine is deployed where there is no IPv4: its
// address by DHCPv6, since a router says so, and the server by its command line.
func TestNetbootIPv6(t *testing.T) {
	soak(t)
	f := netbootForge(t)
	dir := f.exported(t)
	f.small(t, "small", "small image boots")
	n := newNetSite(t, siteSpec{dhcp: "off",
		defaults: fmt.Sprintf("  image: %s/small:1\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
		machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
	n.In("ip", "-6", "addr", "add", "fd00:77::1/64", "dev", netlab.Bridge, "nodad")
	router := n.Start("dnsmasq", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface="+netlab.Bridge, "--bind-interfaces", "--enable-ra",
		"--dhcp-range=fd00:77::100,fd00:77::1ff,64,1h", "--dhcp-leasefile="+filepath.Join(dir, "leases"), "--log-dhcp")
	router.Wait(time.Minute, "router advertisement")
	n.order("deploy", "one")
	m := n.Machine(direct(dir, "imgpipe.server=https://[fd00:77::1]:8443"))
	m.PowerOn()
	m.Wait(bootTime, "imgpipe agent", "eth0: address fd00:77::1", "committed and acknowledged")
	n.state("committed")
	router.Wait(time.Minute, "DHCPREPLY("+netlab.Bridge+") fd00:77::1")
	if strings.Contains(m.Text(), "address 10.77") {
		t.Error("there was IPv4")
	}
}
