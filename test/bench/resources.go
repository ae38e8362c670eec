package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// resources are what a plugin holds: its process and its workers together.
type resources struct {
	proc.Held
	Sessions  int
	Processes int
}

// memory puts ops operations on the plugin, a tenth of them Decrypts that must fail, and looks at what it holds after
// every tenth. What it holds after the second tenth is where growth is counted from, since pools are there then, and the
// most that it holds after a later one is where it is counted to: what comes and goes is held, too.
func memory(ctx context.Context, s *subject, ops int, t *table) error {
	const steps, clients = 10, 8
	start, err := s.resources()
	if errors.Is(err, fs.ErrNotExist) {
		t.note("memory, threads and descriptors are not measured: " + err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	t.resources(0, start)
	s.fault.ResetCounters()
	var settled, most resources
	for step := 1; step <= steps; step++ {
		if _, err := measure.Drive(ctx, load{Clients: clients, Ops: ops / steps}, func(_, call int) error { return s.mixed(ctx, call) }); err != nil {
			return err
		}
		now, err := s.resources()
		if err != nil {
			return err
		}
		if step == 2 {
			settled = now
		}
		if step >= 2 {
			most = most.orMore(now)
		}
		t.resources(step*ops/steps, now)
	}
	t.Figure(fmt.Sprintf("RssAnon of the plugin and its worker over %d operations, a tenth of them failed Decrypts", ops), most.AnonMiB, "MiB", measure.Below(48))
	t.Figure("RssAnon, growth over the last 8 tenths of the operations", most.AnonMiB-settled.AnonMiB, "MiB", measure.Below(2))
	t.Figure("descriptors, growth over the last 8 tenths of the operations", float64(most.Files-settled.Files), "fds", measure.AtMost(0))
	t.Figure("threads, growth over the last 8 tenths of the operations", float64(most.Threads-settled.Threads), "threads", measure.AtMost(4))
	t.Figure(fmt.Sprintf("most sessions over all of them, maxSessions %d (one more is for login)", usualSessions),
		float64(s.fault.MaxOpenSessions()), "sessions", measure.AtMost(usualSessions+1))
	return nil
}

// usualSessions is the default of maxSessions.
const usualSessions = 8

// orMore is the larger of each.
func (r resources) orMore(other resources) resources {
	held := proc.Held{AnonMiB: max(r.AnonMiB, other.AnonMiB), Threads: max(r.Threads, other.Threads), Files: max(r.Files, other.Files)}
	return resources{Held: held, Sessions: max(r.Sessions, other.Sessions)}
}

func (s *subject) resources() (resources, error) {
	pid := s.plugin.Process().PID()
	sum := resources{Sessions: s.fault.OpenSessions()}
	for _, pid := range append(proc.Children(pid), pid) {
		held, err := proc.HeldBy(pid)
		if err != nil {
			return resources{}, err
		}
		sum.Processes++
		sum.AnonMiB += held.AnonMiB
		sum.Threads += held.Threads
		sum.Files += held.Files
	}
	sum.Files -= 4 * sum.Sessions // each has two pipes between the two, and sessions are counted by themselves
	return sum, nil
}

// mixed makes one call: of ten five Decrypts, four Encrypts, and one Decrypt of a ciphertext that was changed.
func (s *subject) mixed(ctx context.Context, call int) error {
	request := s.client.sealed[call%len(s.client.sealed)]
	switch n := call % 10; {
	case n == 9:
		changed := bytes.Clone(request.Ciphertext)
		changed[len(changed)-1] ^= 1
		err := s.client.decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: changed, KeyId: request.KeyId, Uid: requestUID})
		if status.Code(err) != codes.InvalidArgument {
			return fmt.Errorf("opening a changed ciphertext: want InvalidArgument, got %v", err)
		}
		return nil
	case n >= 5:
		_, err := s.client.encrypt(ctx)
		return err
	}
	return s.client.decrypt(ctx, request)
}
