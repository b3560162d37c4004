package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/install"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/agenttest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/netboottest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
)

// scaleMachine is one of the fleet: firmware in netboottest, then iPXE, then the
// agent's own client, without a disk.
type scaleMachine struct {
	f        *scaleFleet
	n        int
	firmware netboottest.Firmware

	addr   netip.Addr
	client *call.Client
	image  *install.Image
	job    *wire.Job
	seq    int64

	verified []atomic.Bool // chunks
	fetched  atomic.Int64  // bytes, compressed
	stopBeat func()

	// Of both boots: how long what took.
	took map[string][]time.Duration
}

// scaleFirmware is a mix: half of the machines are UEFI with PXE, the others
// BIOS, and UEFI with HTTP Boot.
var scaleFirmware = []netboottest.Firmware{netboottest.UEFI, netboottest.BIOS, netboottest.UEFI, netboottest.HTTP}

// lap notes how long a step took.
func (m *scaleMachine) lap(what string, start time.Time) time.Time {
	now := time.Now()
	m.took[what] = append(m.took[what], now.Sub(start))
	return now
}

// dial has t use the machine's own address; and little memory for each answer,
// since all machines are one process: 2000 windows of 4 MiB would be 8 GiB.
func (m *scaleMachine) dial(t *http.Transport) *http.Transport {
	if t.HTTP2 != nil {
		t.HTTP2.MaxReceiveBufferPerStream = 512 << 10
	}
	t.DialContext = (&net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: m.addr.AsSlice()}}).DialContext
	return t
}

// boot goes from power-on to the answer to its claim.
func (m *scaleMachine) boot(ctx context.Context) error {
	at := time.Now()
	r, err := m.f.fleet.Boot(ctx, netboottest.Machine{Number: m.n + 1, Firmware: m.firmware, Lose: 150})
	if err != nil {
		return fmt.Errorf("firmware: %w", err)
	}
	at = m.lap("firmware", at)
	if m.addr.IsValid() && m.addr != r.Addr {
		return fmt.Errorf("had %s, now %s", m.addr, r.Addr)
	}
	m.addr = r.Addr
	plain := &http.Client{Transport: m.dial(&http.Transport{DisableKeepAlives: true, ReadBufferSize: 64 << 10})}
	server, err := m.environment(ctx, plain, r)
	if err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	at = m.lap("environment", at)
	if err := m.claim(ctx, server); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	m.lap("claim", at)
	return nil
}

// environment is fetched, and thrown away. It returns the server's URL.
func (m *scaleMachine) environment(ctx context.Context, c *http.Client, r netboottest.Result) (string, error) {
	if m.firmware == netboottest.HTTP {
		return "https://" + r.Server.String() + ":8443", m.sink(ctx, c, r.File, m.f.Kernel+m.f.Initramfs)
	}
	want := map[netboottest.Firmware]string{netboottest.UEFI: m.f.EFI, netboottest.BIOS: m.f.BIOS}[m.firmware]
	if got := fmt.Sprintf("%x", r.SHA256); got != want {
		return "", fmt.Errorf("%s: other content: %s, want %s", r.File, got, want)
	}
	url := fmt.Sprintf("http://%s/boot.ipxe?mac=%s&arch=x86_64", r.Server, netboottest.Machine{Number: m.n + 1}.MAC())
	script, err := m.get(ctx, c, url)
	if err != nil {
		return "", err
	}
	found := scaleScript.FindStringSubmatch(script)
	if found == nil {
		return "", fmt.Errorf("not the environment's script: %q", script)
	}
	if err := m.sink(ctx, c, found[1], m.f.Kernel); err != nil {
		return "", err
	}
	return found[2], m.sink(ctx, c, found[3], m.f.Initramfs)
}

var scaleScript = regexp.MustCompile(`(?s)kernel (\S+) .*imgpipe.server=(\S+) .*initrd --name \S+ (\S+)`)

func (m *scaleMachine) get(ctx context.Context, c *http.Client, url string) (string, error) {
	var b bytes.Buffer
	err := m.fetch(ctx, c, url, "", http.StatusOK, &b, -1)
	return b.String(), err
}

func (m *scaleMachine) sink(ctx context.Context, c *http.Client, url string, size int64) error {
	return m.fetch(ctx, c, url, "", http.StatusOK, io.Discard, size)
}

func (m *scaleMachine) fetch(ctx context.Context, c *http.Client, url, rng string, status int, w io.Writer, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := scaleBuffers.Get().(*[]byte)
	defer scaleBuffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, resp.Body, *buf)
	if err != nil || resp.StatusCode != status || size >= 0 && n != size {
		return fmt.Errorf("%s: status %d, %d bytes of %d, %v", url, resp.StatusCode, n, size, err)
	}
	return nil
}

var scaleBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// claim is an agent's: with a new boot key, again while it is told to wait.
func (m *scaleMachine) claim(ctx context.Context, server string) error {
	c, err := m.agent(server)
	if err != nil {
		return err
	}
	claim := agenttest.Machine(m.n + 1)
	claim.Identity.UUID, claim.Identity.MACs = "", []string{netboottest.Machine{Number: m.n + 1}.MAC().String()}
	before, old := m.client, m.job
	for m.client = c; ; {
		a, err := c.Claim(ctx, &claim)
		if err != nil {
			return err
		}
		if a.Action == wire.Wait {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(a.RetryAfter) * time.Second): // as the agent does
			}
			continue
		}
		if a.Action != wire.Deploy || a.Job == nil {
			return fmt.Errorf("%s: %s", a.Action, a.Reason)
		}
		m.job = a.Job
		break
	}
	if before == nil {
		return nil
	}
	defer before.Close()
	if m.job.ID != old.ID || m.job.Attempt != old.Attempt+1 {
		return fmt.Errorf("job %s attempt %d, was %s attempt %d", m.job.ID, m.job.Attempt, old.ID, old.Attempt)
	}
	if m.n%10 != 0 {
		return nil
	}
	_, err = before.Events(ctx, old.ID, &wire.Events{Attempt: old.Attempt}) // a ghost of the boot before
	if r, ok := errors.AsType[*call.Refused](err); !ok || r.Code != wire.Superseded {
		return fmt.Errorf("a call of the attempt before: %v, want superseded", err)
	}
	return nil
}

func (m *scaleMachine) agent(server string) (*call.Client, error) {
	c, err := serverClient(&environment.Config{Server: environment.Server{URL: server, CA: []string{m.f.CA}}},
		func() []string { return nil }, func(_ string, args ...any) {
			m.f.repeated.Add(1)
			m.f.say("machine %d: %v", m.n, args)
		})
	if err == nil {
		m.dial(c.Transport().(*http.Transport))
	}
	return c, err
}

// begin opens the image, asks for leave to write, and keeps the lease.
func (m *scaleMachine) begin(ctx context.Context) error {
	at := time.Now()
	var err error
	if m.image, err = (opener{client: m.client}).open(ctx, m.job.Image); err != nil {
		return err
	}
	if m.verified == nil {
		m.verified = make([]atomic.Bool, len(m.image.Source.Index().Chunks))
	}
	if _, err := m.client.Begin(ctx, m.job.ID, &wire.Begin{Attempt: m.job.Attempt, Disk: agenttest.Machine(m.n).Inventory.Disks[0]}); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	m.seq = 0
	beat, stop := context.WithCancel(ctx)
	var beating sync.WaitGroup
	m.stopBeat = func() { stop(); beating.Wait() }
	beating.Go(func() {
		tick := time.NewTicker(wire.Heartbeat * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := m.tell(beat, "write"); err != nil && beat.Err() == nil {
					m.f.failed(m.n, err)
				}
			case <-beat.Done():
				return
			}
		}
	})
	m.lap("begin", at)
	return nil
}

func (m *scaleMachine) tell(ctx context.Context, step string) error {
	m.seq++
	_, err := m.client.Events(ctx, m.job.ID, &wire.Events{Attempt: m.job.Attempt, Log: strings.Repeat("a line of the console\n", 100),
		Events:   []wire.Event{{Seq: m.seq, Uptime: 1, Step: step, State: "info"}},
		Counters: &wire.Counters{Phase: step, Fetched: m.fetched.Load(), Written: m.fetched.Load()}})
	return err
}

// requests are the ranges that the agent asks for.
func requests(x *diskimage.Index) (out [][]int) {
	for i, c := range x.Chunks {
		if n := len(out) - 1; n >= 0 && diskimage.OneRequest(x.Chunks[out[n][0]], x.Chunks[i-1], c) {
			out[n] = append(out[n], i)
		} else {
			out = append(out, []int{i})
		}
	}
	return out
}

// fetchWorkers is how many requests a machine makes at once: those of an agent
// with little memory.
const fetchWorkers = 4

// chunks fetches and verifies a part of the image.
func (m *scaleMachine) chunks(ctx context.Context, runs [][]int) error {
	at := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, fetchWorkers)
	for w := range fetchWorkers {
		wg.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= len(runs) || errs[w] != nil {
					return
				}
				errs[w] = m.request(ctx, runs[k])
			}
		})
	}
	wg.Wait()
	m.lap("blobs", at)
	return errors.Join(errs...)
}

// verifying bounds what machines compute at once: each would have cores of its
// own, and here the packets of the others would wait for it.
var verifying = make(chan struct{}, 2)

var scaleDecoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err)
	}
	return d
}}

func (m *scaleMachine) request(ctx context.Context, run []int) error {
	x := m.image.Source.Index()
	first, last := x.Chunks[run[0]], x.Chunks[run[len(run)-1]]
	body, err := m.image.Source.ReadFrames(ctx, first.Segment, first.Frame.Off, last.Frame.End()-first.Frame.Off)
	if err != nil {
		return err
	}
	defer body.Close()
	d := scaleDecoders.Get().(*zstd.Decoder)
	defer scaleDecoders.Put(d)
	var packed, plain []byte
	pos := first.Frame.Off
	for _, i := range run {
		c := x.Chunks[i]
		if _, err := io.CopyN(io.Discard, body, c.Frame.Off-pos); err != nil {
			return err
		}
		packed = append(packed[:0], make([]byte, c.Frame.Len)...)
		if _, err := io.ReadFull(body, packed); err != nil {
			return err
		}
		pos = c.Frame.End()
		verifying <- struct{}{}
		plain, err = d.DecodeAll(packed, plain[:0])
		good := err == nil && diskimage.DigestOf(plain) == c.Digest
		<-verifying
		if !good {
			return fmt.Errorf("chunk %d does not match the index (%v)", i, err)
		}
		if m.verified[i].Swap(true) {
			return fmt.Errorf("chunk %d came twice", i)
		}
		m.fetched.Add(c.Frame.Len)
	}
	return nil
}

// cut is a machine that loses power.
func (m *scaleMachine) cut() {
	m.stopBeat()
	_ = m.image.Close()
	m.client.Close()
}

// commit ends the job, and calls home as the image does.
func (m *scaleMachine) commit(ctx context.Context) error {
	at := time.Now()
	m.stopBeat()
	for i := range m.verified {
		if !m.verified[i].Load() {
			return fmt.Errorf("chunk %d never came", i)
		}
	}
	if err := m.tell(ctx, "commit"); err != nil {
		return err
	}
	if _, err := m.client.Result(ctx, m.job.ID, &wire.Result{Attempt: m.job.Attempt, Outcome: wire.Committed, State: "complete"}); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	home := scaleHome.FindString(string(m.job.Config.VendorData))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, home, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: m.dial(&http.Transport{DisableKeepAlives: true})}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("call home %s: %s", home, resp.Status)
	}
	m.lap("end", at)
	return nil
}

var scaleHome = regexp.MustCompile(`http://\S+`)
