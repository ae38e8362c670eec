package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Members is an etcd cluster of one or several members on loopback, each with data and a log of its own. Launch, kill
// and stop them from one goroutine; URLs never changes.
type Members struct {
	bin     kubebin.Set
	dir     string
	members []member
	token   string // of the administrator of all API servers on it
}

type member struct {
	name         string // also that of its folder and, with .log, of its log
	client, peer string // URLs
	process      *proc.Process
}

// NewMembers chooses ports for n members whose files are in dir, which is made if need be, and starts none.
func NewMembers(bin kubebin.Set, dir string, n int) (*Members, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of etcd: %w", err)
	}
	ports, err := FreePorts(2 * n)
	if err != nil {
		return nil, err
	}
	m := &Members{bin: bin, dir: dir, token: rand.Text()}
	for i := range n {
		name := "etcd"
		if n > 1 {
			name = fmt.Sprintf("etcd-%d", i+1)
		}
		m.members = append(m.members, member{
			name: name, client: "http://" + loopback(ports[2*i]), peer: "http://" + loopback(ports[2*i+1]),
		})
	}
	return m, nil
}

// URLs are the members' client addresses.
func (m *Members) URLs() []string {
	var urls []string
	for i := range m.members {
		urls = append(urls, m.members[i].client)
	}
	return urls
}

// PIDs are the processes of the members that were launched.
func (m *Members) PIDs() []int {
	var pids []int
	for i := range m.members {
		if p := m.members[i].process; p != nil {
			pids = append(pids, p.PID())
		}
	}
	return pids
}

// Launch starts member i (from 0) on its data and does not wait for it: with less than a majority it cannot answer.
func (m *Members) Launch(i int) error {
	var initial []string
	for j := range m.members {
		initial = append(initial, m.members[j].name+"="+m.members[j].peer)
	}
	it := &m.members[i]
	p, err := proc.Start(proc.Spec{
		Name: it.name, Path: m.bin.Path("etcd"), Log: filepath.Join(m.dir, it.name+".log"),
		Args: []string{
			"--name=" + it.name, "--data-dir=" + filepath.Join(m.dir, it.name), "--log-level=warn", "--unsafe-no-fsync",
			"--listen-client-urls=" + it.client, "--advertise-client-urls=" + it.client,
			"--listen-peer-urls=" + it.peer, "--initial-advertise-peer-urls=" + it.peer,
			"--initial-cluster=" + strings.Join(initial, ","),
		},
	})
	if err != nil {
		return err
	}
	it.process = p
	return nil
}

// WaitReady waits until every member that was launched answers.
func (m *Members) WaitReady(ctx context.Context) error {
	for i := range m.members {
		it := &m.members[i]
		if it.process == nil {
			continue
		}
		err := poll(ctx, it.process, it.name, func(ctx context.Context) (string, error) {
			code, body, err := get(ctx, http.DefaultClient, it.client+"/readyz")
			if err != nil || code == http.StatusOK {
				return "", err
			}
			return body, errors.New(http.StatusText(code))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Kill ends member i with SIGKILL. One that never started is no error.
func (m *Members) Kill(i int) {
	if p := m.members[i].process; p != nil {
		p.Kill()
	}
}

// Stop ends all members. Those that never started are no error.
func (m *Members) Stop() error {
	var errs []error
	for i := range m.members {
		if p := m.members[i].process; p != nil {
			errs = append(errs, p.Stop(grace))
		}
	}
	return errors.Join(errs...)
}
