package netboot

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Deployment asks for a job.
type Deployment struct {
	Machine       string `json:"machine"`
	Image         string `json:"image,omitempty"` // "": SITE.yaml's
	AllowRollback bool   `json:"allowRollback,omitempty"`
	Cancel        bool   `json:"cancel,omitempty"` // end an open job that has not begun to write
}

// ErrNoMachine and ErrNoImage are why there is nothing to deploy.
var (
	ErrNoMachine = errors.New("SITE.yaml names no such machine")
	ErrNoImage   = errors.New("no image: SITE.yaml names none, and none was asked for")
)

// resolveTime bounds how long a registry may take to say what a tag means.
const resolveTime = 2 * time.Minute

// Deploy makes a job: the image is resolved and believed, and the config is
// filled in, now.
func (s *Server) Deploy(ctx context.Context, d Deployment, by string) (*jobs.Job, error) {
	now := s.site.Load()
	m := now.Machine(d.Machine)
	if m == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoMachine, clean(d.Machine))
	}
	ref := d.Image
	if ref == "" {
		ref = m.Image
	}
	if ref == "" {
		return nil, fmt.Errorf("%s: %w", m.Name, ErrNoImage)
	}
	if m.Disk == "" {
		return nil, fmt.Errorf("%s: SITE.yaml does not say which disk", m.Name)
	}
	values := site.Values{}
	if seen := s.store.Machine(m.Name); seen != nil {
		values.Identity, values.Inventory = seen.Identity, seen.Inventory
	} else {
		values.Identity = wire.Identity{UUID: m.Match.UUID, Serial: m.Match.Serial, MACs: m.Match.MAC}
	}
	arch := ""
	if values.Inventory != nil {
		arch = values.Inventory.Architecture
	} else if e := s.env.Load(); e != nil {
		arch = e.Architecture // it can run nothing else
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	image, err := s.o.Resolve(ctx, now.Trust, ref, arch)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	id, err := s.word(10)
	if err != nil {
		return nil, err
	}
	token, err := s.word(32)
	if err != nil {
		return nil, err
	}
	values.Job = id
	config, err := now.Render(m, values)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	if m.Config.PhoneHome == "vendorData" {
		config.VendorData = phoneHome(s.url() + "/booted/" + id + "/" + token)
	}
	sum := sha256.Sum256([]byte(token))
	j := jobs.Job{ID: id, Machine: m.Name, TokenHash: hex.EncodeToString(sum[:]), Spec: jobs.Spec{
		Image: image, Disk: m.Disk, Destroy: m.Destroy, Retire: m.Retire, Wipe: m.Wipe, After: wire.After(m.After), BootOrder: wire.BootOrder(m.BootOrder),
		AllowRollback: m.AllowRollback || d.AllowRollback, Attempts: m.Attempts, BootTimeout: time.Duration(m.BootTimeout), Config: digests(config),
	}}
	err = s.store.Deploy(j, jobs.Secrets{Config: config, Rescue: m.Rescue}, jobs.DeployOptions{Cancel: d.Cancel, By: by}, s.o.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	v, _ := s.store.Last(m.Name, s.o.Now())
	return &v.Job, nil
}

// url is the plain port's.
func (s *Server) url() string {
	if s.o.PlainPort == 80 {
		return "http://" + s.o.Address
	}
	return "http://" + net.JoinHostPort(s.o.Address, fmt.Sprint(s.o.PlainPort))
}

// phoneHome is cloud-config for the module phone_home, which posts once its
// modules have run.
func phoneHome(url string) []byte {
	return fmt.Appendf(nil, "#cloud-config\nphone_home:\n  url: %s\n  post: [instance_id]\n  tries: 30\n", url)
}

// digests are what people are shown of a config.
func digests(c wire.Config) map[string]string {
	out := map[string]string{}
	for name, b := range map[string][]byte{"userData": c.UserData, "metaData": c.MetaData, "networkConfig": c.NetworkConfig, "vendorData": c.VendorData} {
		if len(b) > 0 {
			sum := sha256.Sum256(b)
			out[name] = "sha256:" + hex.EncodeToString(sum[:])
		}
	}
	return out
}

// word draws n random bytes, as lower-case letters and digits.
func (s *Server) word(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.o.Rand, b); err != nil {
		return "", err
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)), nil
}

// powerTime bounds a power command.
const powerTime = time.Minute

// restart runs a machine's power command, and reports whether it has one.
func (s *Server) restart(j *jobs.Job) bool {
	m := s.site.Load().Machine(j.Machine)
	if m == nil || len(m.Power) == 0 {
		return false
	}
	id := wire.Identity{UUID: m.Match.UUID, Serial: m.Match.Serial, MACs: m.Match.MAC}
	if seen := s.store.Machine(m.Name); seen != nil {
		id = seen.Identity
	}
	mac := ""
	if len(id.MACs) > 0 {
		mac = id.MACs[0]
	}
	env := []string{"IMGPIPE_MACHINE=" + m.Name, "IMGPIPE_JOB=" + j.ID, "IMGPIPE_UUID=" + id.UUID, "IMGPIPE_SERIAL=" + id.Serial, "IMGPIPE_MAC=" + mac}
	s.works.Go(func() {
		ctx, cancel := context.WithTimeout(s.working, powerTime)
		defer cancel()
		if err := s.o.Power(ctx, m.Power, env); err != nil {
			s.o.Log.Error("power", "machine", m.Name, "job", j.ID, "error", err)
			return
		}
		s.o.Log.Info("power: the machine restarts", "machine", m.Name, "job", j.ID)
	})
	return true
}

// first makes jobs for machines that never had one, where SITE.yaml says so.
func (s *Server) first() {
	s.firsts.Lock()
	defer s.firsts.Unlock()
	now := s.site.Load()
	for i := range now.Machines {
		m := &now.Machines[i]
		if m.Deploy != "first" {
			continue
		}
		if seen := s.store.Machine(m.Name); seen != nil && seen.Job != "" {
			continue
		}
		if _, err := s.Deploy(s.working, Deployment{Machine: m.Name}, "SITE.yaml"); err != nil {
			s.o.Log.Error("deploy: first", "machine", m.Name, "error", err)
		}
	}
}
