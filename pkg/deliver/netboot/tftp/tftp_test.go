package tftp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/tftp"
)

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

// serve runs a server on loopback until the test ends.
func serve(t *testing.T, files tftp.Files, o tftp.Options) (port int, stats *tftp.Stats) {
	t.Helper()
	conn, err := tftp.Listen(context.Background(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	stats = new(tftp.Stats)
	o.Stats = stats
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tftp.Serve(ctx, conn, files, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := stats.Sessions.Load(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
	return conn.Port(), stats
}

// client is a TFTP client under the test's control.
type client struct {
	t    *testing.T
	conn *net.UDPConn
	tid  *net.UDPAddr // the server's socket of the session
	port int
}

func newClient(t *testing.T, port int) *client {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn, port: port}
}

func (c *client) ask(fields ...string) {
	c.t.Helper()
	c.send(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: c.port}, append([]byte{0, 1}, strings.Join(fields, "\x00")+"\x00"...))
}

func (c *client) send(to *net.UDPAddr, b []byte) {
	c.t.Helper()
	if _, err := c.conn.WriteToUDP(b, to); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) ack(n int) { c.t.Helper(); c.send(c.tid, []byte{0, 4, byte(n >> 8), byte(n)}) }

// next returns the next packet; nil if none comes within d.
func (c *client) next(d time.Duration) []byte {
	c.t.Helper()
	b := make([]byte, 65536)
	_ = c.conn.SetReadDeadline(time.Now().Add(d))
	n, from, err := c.conn.ReadFromUDP(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.tid = from
	return b[:n]
}

func (c *client) want(op uint16, arg int) []byte {
	c.t.Helper()
	b := c.next(5 * time.Second)
	if len(b) < 4 || binary.BigEndian.Uint16(b) != op || arg >= 0 && int(binary.BigEndian.Uint16(b[2:])) != arg {
		c.t.Fatalf("got % x, want opcode %d, block or code %d", b[:min(len(b), 64)], op, arg)
	}
	return b[4:]
}

const soon = 30 * time.Second

func TestSizesAndOptions(t *testing.T) {
	files := tftp.Map{}
	sizes := []int{0, 1, 511, 512, 513, 1024, 5000}
	for _, n := range sizes {
		files[fmt.Sprint(n)] = tftp.Bytes(content(n))
	}
	port, _ := serve(t, files, tftp.Options{})
	for _, n := range sizes {
		c := newClient(t, port)
		c.ask(fmt.Sprint(n), "octet")
		var got []byte
		for i := 1; ; i++ {
			b := c.want(3, i)
			got = append(got, b...)
			c.ack(i)
			if len(b) < 512 {
				break
			}
		}
		if !bytes.Equal(got, content(n)) {
			t.Errorf("%d bytes: other content", n)
		}
	}
	for _, o := range []struct{ ask, want string }{
		{"tsize 0", "tsize 5000"},
		{"blksize 1024", "blksize 1024"},
		{"BLKSIZE 65464", "blksize 1468"},
		{"blksize 7 tsize 0", "tsize 5000"},
		{"timeout 3 windowsize 100", "timeout 3 windowsize 16"},
		{"timeout 0 windowsize 0 multicast x tsize 0", "tsize 5000"},
	} {
		c := newClient(t, port)
		c.ask(append([]string{"5000", "octet"}, strings.Fields(o.ask)...)...)
		b := c.next(5 * time.Second)
		if got := strings.TrimSuffix(strings.ReplaceAll(string(b[2:]), "\x00", " "), " "); b[1] != 6 || got != o.want {
			t.Errorf("%q: got opcode %d %q, want %q", o.ask, b[1], got, o.want)
		}
		c.send(c.tid, []byte{0, 5, 0, 8, 0})
	}
}

func TestBlockNumbersRollOver(t *testing.T) {
	data := content(8 * 66000)
	port, _ := serve(t, tftp.Map{"f": tftp.Bytes(data)}, tftp.Options{Timeout: soon})
	c := newClient(t, port)
	c.ask("f", "octet", "blksize", "8", "windowsize", "16")
	c.want(6, -1)
	c.ack(0)
	var got []byte
	for i := 1; ; i++ {
		b := c.want(3, i&0xffff)
		got = append(got, b...)
		if i%16 == 0 || len(b) < 8 {
			c.ack(i)
		}
		if len(b) < 8 {
			break
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("other content")
	}
}

func TestRepeatedAcksDoubleNothing(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(512 * 20))}, tftp.Options{Timeout: soon})
	c := newClient(t, port)
	c.ask("f", "octet")
	for i := 1; i <= 21; i++ {
		c.want(3, i)
		c.ack(i)
		c.ack(i)
		c.ack(i)
		c.ack(i - 1)
	}
	for stats.Done.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if n := stats.Resent.Load(); n != 0 {
		t.Errorf("%d blocks were sent twice", n)
	}
}

func TestLostBlockOfAWindowIsSentAgainWithoutTimeout(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(512 * 10))}, tftp.Options{Timeout: soon})
	c := newClient(t, port)
	c.ask("f", "octet", "windowsize", "4")
	c.want(6, -1)
	c.ack(0)
	for i := 1; i <= 4; i++ {
		c.want(3, i)
	}
	c.ack(2) // 3 was lost
	for i := 3; i <= 6; i++ {
		c.want(3, i)
	}
	c.ack(2) // 3 was lost again: the window's first block
	c.ack(2)
	for i := 3; i <= 6; i++ {
		c.want(3, i)
	}
	c.ack(6)
	for i := 7; i <= 10; i++ {
		c.want(3, i)
	}
	c.ack(10)
	c.want(3, 11)
	c.ack(11)
	if n := stats.Resent.Load(); n != 6 {
		t.Errorf("%d blocks were sent again, want 6", n)
	}
}

func TestSilenceIsRepeatedThenGivenUp(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(100))}, tftp.Options{Timeout: 10 * time.Millisecond, Retries: 3})
	c := newClient(t, port)
	c.ask("f", "octet")
	for range 4 {
		c.want(3, 1)
	}
	for stats.TimedOut.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if b := c.next(20 * time.Millisecond); b != nil {
		t.Errorf("it goes on: % x", b[:4])
	}
}

func TestRepeatedRequestIsOneSession(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(100))}, tftp.Options{Timeout: soon})
	c := newClient(t, port)
	for range 5 {
		c.ask("f", "octet")
	}
	c.want(3, 1)
	if b := c.next(20 * time.Millisecond); b != nil {
		t.Errorf("a second answer: % x", b[:4])
	}
	if n := stats.Sessions.Load(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	c.ack(1)
}

func TestAbortAfterSizeIsNormal(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(100))}, tftp.Options{Timeout: soon})
	c := newClient(t, port)
	c.ask("f", "octet", "tsize", "0", "blksize", "1468")
	c.want(6, -1)
	c.send(c.tid, append([]byte{0, 5, 0, 8}, "User aborted the transfer\x00"...))
	for stats.Sessions.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	if stats.Aborted.Load() != 1 || stats.Failed.Load()+stats.TimedOut.Load() != 0 {
		t.Error("not counted as aborted")
	}
}

func TestRefusals(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	port, _ := serve(t, tftp.Map{"f": tftp.Bytes(nil), "broken": tftp.Disk("/nonexistent/file"), "dir": tftp.Disk(t.TempDir())}, tftp.Options{})
	for _, c := range []struct {
		packet string
		code   int
	}{
		{"\x00\x01nothere\x00octet\x00", 1},
		{"\x00\x01" + outside + "\x00octet\x00", 1},
		{"\x00\x01../../../.." + outside + "\x00octet\x00", 1},
		{"\x00\x01..\\..\\" + outside + "\x00octet\x00", 1},
		{"\x00\x01broken\x00octet\x00", 1},
		{"\x00\x01dir\x00octet\x00", 0},
		{"\x00\x01f\x00netascii\x00", 4},
		{"\x00\x02f\x00octet\x00", 2},
		{"\x00\x01f\x00octet", 4},
		{"\x00\x01\x00octet\x00", 4},
		{"\x00\x01f\n\x00octet\x00", 4},
		{"\x00\x01..\x00octet\x00", 4},
		{"\x00\x01" + strings.Repeat("x", 256) + "\x00octet\x00", 4},
	} {
		cl := newClient(t, port)
		cl.send(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, []byte(c.packet))
		if b := cl.next(5 * time.Second); len(b) < 5 || b[1] != 5 || int(b[3]) != c.code {
			t.Errorf("%q: got %q, want error %d", c.packet, b, c.code)
		}
	}
	cl := newClient(t, port) // other spellings of a file's name
	for _, name := range []string{"/f", `\f`, "//./f", "x/../f"} {
		cl.ask(name, "octet", "tsize", "0")
		cl.want(6, -1)
		cl.send(cl.tid, []byte{0, 5, 0, 0, 0})
		cl = newClient(t, port)
	}
}

type failing struct{}

func (failing) Size() int64 { return 1000 }
func (failing) ReadAt(b []byte, off int64) (int, error) {
	if off >= 512 {
		return 0, errors.New("input/output error")
	}
	return len(b), nil
}

func TestReadErrorIsSaid(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": func() (tftp.File, error) { return failing{}, nil }}, tftp.Options{})
	c := newClient(t, port)
	c.ask("f", "octet")
	c.want(3, 1)
	c.ack(1)
	c.want(5, 0)
	for stats.Failed.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestSessionsAreBoundedAndLateOnesServed(t *testing.T) {
	port, stats := serve(t, tftp.Map{"f": tftp.Bytes(content(100))}, tftp.Options{Sessions: 2, Timeout: soon})
	var cs []*client
	for range 3 {
		c := newClient(t, port)
		c.ask("f", "octet")
		cs = append(cs, c)
	}
	cs[0].want(3, 1)
	cs[1].want(3, 1)
	for stats.Late.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cs[0].ack(1)
	for stats.Sessions.Load() > 1 {
		time.Sleep(time.Millisecond)
	}
	cs[2].ask("f", "octet")
	cs[2].want(3, 1)
	cs[1].ack(1)
	cs[2].ack(1)
}

func TestAnswersFromTheAddressThatWasAsked(t *testing.T) {
	port, _ := serve(t, tftp.Map{"f": tftp.Bytes(content(3))}, tftp.Options{})
	for _, name := range []string{"f", "nothere"} {
		c := newClient(t, port)
		c.send(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 9), Port: port}, []byte("\x00\x01"+name+"\x00octet\x00"))
		c.next(5 * time.Second)
		if got := c.tid.IP.String(); got != "127.0.0.9" {
			t.Errorf("%s: answered from %s", name, got)
		}
		c.ack(1)
	}
}

// TestShutdown: sessions in every state end with the context.
func TestShutdown(t *testing.T) {
	conn, err := tftp.Listen(context.Background(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stats := new(tftp.Stats)
	done := make(chan error)
	go func() {
		done <- tftp.Serve(ctx, conn, tftp.Map{"f": tftp.Bytes(content(9000))}, tftp.Options{Timeout: time.Hour, Stats: stats})
	}()
	c := newClient(t, conn.Port())
	c.ask("f", "octet")
	c.want(3, 1)
	cancel()
	if err := <-done; err != nil || stats.Sessions.Load() != 0 || stats.TimedOut.Load() != 0 {
		t.Errorf("Serve: %v, %d sessions, %d timed out", err, stats.Sessions.Load(), stats.TimedOut.Load())
	}
}

// TestOtherClients lets programs that others wrote fetch files, many at once.
func TestOtherClients(t *testing.T) {
	files, data := tftp.Map{}, map[string][]byte{}
	for _, n := range []int{0, 512, 1468, 100000, 3 << 20} {
		name := fmt.Sprintf("file%d", n)
		data[name] = content(n)
		files[name] = tftp.Bytes(data[name])
	}
	port, stats := serve(t, files, tftp.Options{})
	p := fmt.Sprint(port)
	programs := map[string]func(name, out string) []string{
		"curl": func(name, out string) []string {
			return []string{"curl", "-sS", "-o", out, "tftp://127.0.0.1:" + p + "/" + name}
		},
		"tftp": func(name, out string) []string {
			return []string{"tftp", "-m", "binary", "127.0.0.1", p, "-c", "get", name, out}
		},
		"atftp": func(name, out string) []string {
			return []string{"atftp", "--option", "blksize 1428", "--option", "windowsize 8", "-g", "-r", name, "-l", out, "127.0.0.1", p}
		},
		"busybox": func(name, out string) []string {
			return []string{"busybox", "tftp", "-g", "-b", "1400", "-r", name, "-l", out, "127.0.0.1", p}
		},
	}
	for prog, args := range programs {
		t.Run(prog, func(t *testing.T) {
			if _, err := exec.LookPath(prog); err != nil {
				t.Skip(err)
			}
			dir := t.TempDir()
			var wg sync.WaitGroup
			for name, want := range data {
				if prog == "curl" && len(want) == 0 {
					continue // curl 7.88 ends a transfer of nothing with error 71
				}
				wg.Go(func() {
					out := filepath.Join(dir, name)
					a := args(name, out)
					said, err := exec.Command(a[0], a[1:]...).CombinedOutput()
					got, rerr := os.ReadFile(out)
					if len(want) == 0 && rerr != nil && err == nil {
						return // some make no file of nothing
					}
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%v: %v, %d bytes of %d\n%s", a, err, len(got), len(want), said)
					}
				})
			}
			wg.Wait()
		})
	}
	t.Logf("%d blocks sent again", stats.Resent.Load())
}
