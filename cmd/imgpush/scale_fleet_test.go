package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/netboottest"
)

// scaleFleet is the client process: what it is told, and what it found.
type scaleFleet struct {
	Machines          int
	Server, Nginx     []int  // processes
	CA                string // PEM
	EFI, BIOS         string // SHA-256 of the boot files
	Kernel, Initramfs int64  // bytes
	NginxPlain        string // URL of the files of the environment
	NginxTLS          string // URL of the blobs

	fleet    *netboottest.Fleet
	machines []*scaleMachine
	repeated atomic.Int64
	out      sync.Mutex
	failures atomic.Int64
}

// scaleReport is what the fleet says in the end.
type scaleReport struct {
	Failed   int64            `json:"failed"`
	Repeated int64            `json:"repeated"` // calls that were made again
	Fetched  int64            `json:"fetched"`  // bytes of blobs, verified
	Rounds   [3]scaleUsage    `json:"rounds"`   // to half-way; from there to the last chunk; commit and call home
	Steps    map[string]steps `json:"steps"`
	Peers    []scalePeer      `json:"peers"`
	Clients  float64          `json:"clients"` // CPU seconds of the fleet
}

type steps struct{ Median, Slowest time.Duration }

// scaleUsage is what processes took, from one moment to another.
type scaleUsage struct {
	Took time.Duration
	CPU  float64 // seconds
	Peak int64   // bytes, resident, so far
}

// scalePeer is the same files from both servers.
type scalePeer struct {
	What, Who string
	Bytes     int64
	scaleUsage
}

func (f *scaleFleet) say(format string, args ...any) {
	f.out.Lock()
	defer f.out.Unlock()
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (f *scaleFleet) failed(n int, err error) {
	f.failures.Add(1)
	f.say("machine %d failed: %v", n, err)
}

// runScaleFleet is the process; the test starts it in a network namespace.
func runScaleFleet() {
	f := new(scaleFleet)
	err := json.Unmarshal([]byte(os.Getenv("IMGPIPE_TEST_FLEET")), f)
	var r *scaleReport
	if err == nil {
		r, err = f.run()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (f *scaleFleet) run() (r *scaleReport, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if f.fleet, err = netboottest.Open("cli0"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.fleet.Close()) }()
	for n := range f.Machines {
		f.machines = append(f.machines, &scaleMachine{f: f, n: n, firmware: scaleFirmware[n%len(scaleFirmware)], took: map[string][]time.Duration{}})
	}
	r = new(scaleReport)
	r.Rounds[0] = f.measure(f.Server, func() {
		f.each(func(m *scaleMachine) error { return m.install(ctx, time.Second, 0, 2) })
	})
	f.each(func(m *scaleMachine) error { m.cut(); return nil })
	r.Rounds[1] = f.measure(f.Server, func() {
		f.each(func(m *scaleMachine) error { return m.install(ctx, time.Second, 1, 2) })
	})
	if r.Failed = f.failures.Load(); r.Failed > 0 {
		return r, nil
	}
	if r.Peers, err = f.peers(ctx); err != nil {
		return nil, err
	}
	r.Rounds[2] = f.measure(f.Server, func() { f.each(func(m *scaleMachine) error { return m.commit(ctx) }) })
	r.Failed, r.Repeated, r.Steps = f.failures.Load(), f.repeated.Load(), map[string]steps{}
	all := map[string][]time.Duration{}
	for _, m := range f.machines {
		r.Fetched += m.fetched.Load()
		for what, took := range m.took {
			all[what] = append(all[what], took...)
		}
	}
	for what, took := range all {
		slices.Sort(took)
		r.Steps[what] = steps{took[len(took)/2], took[len(took)-1]}
	}
	r.Clients = cpuOf(os.Getpid())
	return r, nil
}

// each does something with all machines at once. One that failed is left out.
func (f *scaleFleet) each(do func(*scaleMachine) error) {
	var wg sync.WaitGroup
	for _, m := range f.machines {
		wg.Go(func() {
			if err := do(m); err != nil {
				f.failed(m.n, err)
			}
		})
	}
	wg.Wait()
	if f.failures.Load() > 0 {
		f.say("%d failed", f.failures.Load())
	}
}

// install boots a machine, which arrives some time within spread, and has it
// fetch the kth of so many parts.
func (m *scaleMachine) install(ctx context.Context, spread time.Duration, k, parts int) error {
	time.Sleep(spread * time.Duration(m.n) / time.Duration(m.f.Machines)) // the arrival, not a wait
	if err := m.boot(ctx); err != nil {
		return err
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	all := requests(m.image.Source.Index())
	if err := m.chunks(ctx, all[len(all)*k/parts:len(all)*(k+1)/parts]); err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	return nil
}

// peers has all machines fetch the same from the server and from nginx, in
// turns: the initramfs over plain HTTP, and ranges of a blob over TLS with the
// boot key, on connections that are open. Nothing is decoded.
func (f *scaleFleet) peers(ctx context.Context) (out []scalePeer, err error) {
	x := f.machines[0].image.Source.Index()
	runs := requests(x)
	plain := func(base string) func(m *scaleMachine) (int64, error) {
		return func(m *scaleMachine) (int64, error) {
			c := &http.Client{Transport: m.dial(&http.Transport{DisableKeepAlives: true, ReadBufferSize: 64 << 10})}
			return f.Initramfs, m.sink(ctx, c, base+"initramfs.zst", f.Initramfs)
		}
	}
	ranges := func(url func(*scaleMachine) string, client func(*scaleMachine) *http.Client) func(m *scaleMachine) (int64, error) {
		return func(m *scaleMachine) (total int64, err error) {
			for k := range max(1, 150/f.Machines) {
				run := runs[(m.n+k)%len(runs)]
				first, last := x.Chunks[run[0]], x.Chunks[run[len(run)-1]]
				size := last.Frame.End() - first.Frame.Off
				err := m.fetch(ctx, client(m), url(m)+x.Segments[first.Segment].Digest.String()[7:], fmt.Sprintf("bytes=%d-%d", first.Frame.Off, last.Frame.End()-1), http.StatusPartialContent, discard{}, size)
				if err != nil {
					return total, err
				}
				total += size
			}
			return total, nil
		}
	}
	theirs := make([]*http.Client, f.Machines)
	f.each(func(m *scaleMachine) error {
		c, err := m.agent(f.NginxTLS)
		if err != nil {
			return err
		}
		theirs[m.n] = &http.Client{Transport: c.Transport()}
		return m.fetch(ctx, theirs[m.n], f.NginxTLS+"/ready", "", http.StatusOK, discard{}, -1)
	})
	host := strings.TrimSuffix(f.NginxPlain, "/env/")
	host = host[:strings.LastIndex(host, ":")]
	get := map[[2]string]func(*scaleMachine) (int64, error){
		{"environment, plain HTTP", "serve"}: plain(host + "/env/"),
		{"environment, plain HTTP", "nginx"}: plain(f.NginxPlain),
		{"blob ranges, TLS", "serve"}: ranges(func(m *scaleMachine) string {
			return m.client.URL() + "/v2/" + m.job.Image.Repository + "/blobs/sha256:"
		}, func(m *scaleMachine) *http.Client { return &http.Client{Transport: m.client.Transport()} }),
		{"blob ranges, TLS", "nginx"}: ranges(func(*scaleMachine) string { return f.NginxTLS + "/blobs/" },
			func(m *scaleMachine) *http.Client { return theirs[m.n] }),
	}
	for _, what := range []string{"environment, plain HTTP", "blob ranges, TLS"} {
		mine, nginx := scalePeer{What: what, Who: "serve"}, scalePeer{What: what, Who: "nginx"}
		for range 3 {
			for _, p := range []*scalePeer{&mine, &nginx} {
				pids := map[string][]int{"serve": f.Server, "nginx": f.Nginx}[p.Who]
				var bytes atomic.Int64
				u := f.measure(pids, func() {
					f.each(func(m *scaleMachine) error {
						n, err := get[[2]string{what, p.Who}](m)
						bytes.Add(n)
						return err
					})
				})
				p.Bytes, p.Took, p.CPU, p.Peak = p.Bytes+bytes.Load(), p.Took+u.Took, p.CPU+u.CPU, u.Peak
			}
		}
		out = append(out, mine, nginx)
	}
	return out, nil
}

// discard takes everything; it has no ReadFrom, so that both sides use buffers.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// measure says what processes take while f runs.
func (f *scaleFleet) measure(pids []int, do func()) (u scaleUsage) {
	before, start := 0.0, time.Now()
	for _, p := range pids {
		before += cpuOf(p)
	}
	do()
	u.Took = time.Since(start)
	for _, p := range pids {
		u.CPU += cpuOf(p)
		u.Peak += statusOf(p, "VmHWM")
	}
	u.CPU -= before
	return u
}

// cpuOf is the CPU time that a process took, in seconds (proc(5), stat).
func cpuOf(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // 0: it is gone, which fails elsewhere
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / 100 // USER_HZ, the same on every architecture of Linux that Go has
}

// statusOf is a line of /proc/PID/status, in bytes.
func statusOf(pid int, name string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), name+":")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64)
	return n << 10
}
