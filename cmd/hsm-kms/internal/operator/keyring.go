package operator

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// The KeyRing of the CRD that hsm-kms manifests operator prints.
const (
	apiVersion  = "hsm-kms.io/v1alpha1"
	keyRings    = "/apis/" + apiVersion + "/keyrings"
	eventsPath  = "/api/v1/namespaces/default/events" // those of objects without a namespace
	maxHistory  = 20
	maxMessage  = 1024 // of an Event
	showEvery   = 10 * time.Minute
	progressing = 30 * time.Second
)

// Status is what people see of a ring: the status of its KeyRing, and what operate --once prints. Field names are a contract.
// All fields are always written: a merge leaves what is not there as it was.
type Status struct {
	State       state.Name  `json:"state"`
	Since       metav1.Time `json:"since"`
	Message     string      `json:"message"`
	Hint        string      `json:"hint"`
	NextStep    string      `json:"nextStep"` // RFC 3339
	CurrentKey  string      `json:"currentKey"`
	Fingerprint string      `json:"fingerprint"` // of the current key
	ActiveSince string      `json:"activeSince"` // RFC 3339
	Nodes       string      `json:"nodes"`       // known and well, of those that are expected
	ObjectsLeft int64       `json:"objectsLeft"` // not under the current key, as etcd was read last
	Retirable   []string    `json:"retirable"`   // key_ids
	Command     string      `json:"command"`     // with which a person retires the first of them, on the node that leads
	Leader      string      `json:"leader"`
	// Conditions: Agreed (every node is known, well, and has the same current key), Clean (etcd has nothing under another key),
	// Blocked (a person has to do something), CertificatesEnding (the identity of an operate ends soon).
	Conditions []metav1.Condition `json:"conditions"`
	History    []Change           `json:"history"` // of the state, the newest last
}

// Change is a change of the state.
type Change struct {
	Time    metav1.Time `json:"time"`
	State   state.Name  `json:"state"`
	Message string      `json:"message"`
}

// keyRing is the object.
type keyRing struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Status            Status `json:"status"`
}

// shown is what was written last.
type shown struct {
	status     Status
	first      time.Time // when this leader began to write
	uid        string    // of the KeyRing; empty: there is none, or it was not asked for
	at         time.Time
	failed     bool
	ending     string
	reported   string // message of the last Event and line of the log
	reportedAt time.Time
}

// show tells people: the log, the KeyRing and Events, each on a change. It returns what it shows.
func (o *Operator) show(ctx context.Context, d state.Decision) *Status {
	limited, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	now := time.Now()
	if o.shown.at.IsZero() {
		o.shown.first = now
		o.adopt(limited, now)
	}
	was := o.shown.status
	status := o.status(d, now)
	o.mu.Lock()
	o.figures.status, o.figures.next = &status, d.Next
	o.figures.ready, o.figures.expected = o.countNodes()
	o.mu.Unlock()
	// Some errors are worded differently each time, with the port of a connection for example.
	changed := status.State != was.State || status.State == state.Blocked && status.Message != o.shown.reported && now.Sub(o.shown.reportedAt) >= state.RetryMost
	if o.ending != "" && o.ending != o.shown.ending {
		o.cfg.Log.Warn("a certificate ends soon", "problem", o.ending)
	}
	o.shown.ending = o.ending
	if changed {
		o.shown.reported, o.shown.reportedAt = status.Message, now
		level := o.cfg.Log.Info
		if status.State == state.Blocked {
			level = o.cfg.Log.Warn
		}
		level("state", "state", status.State, "reason", status.Message, "hint", status.Hint, "next", status.NextStep, "retirable", status.Retirable, "command", status.Command)
	}
	// At first it is written each time: what the leader before was writing may come late.
	if reflect.DeepEqual(status, was) && now.Sub(o.shown.at) < showEvery && now.Sub(o.shown.first) > o.cfg.validity() {
		return &status
	}
	o.shown.status, o.shown.at = status, now
	err := o.write(limited, &status)
	if err == nil && changed && o.shown.uid != "" {
		err = o.event(limited, &status, now)
	}
	if failed := err != nil; failed != o.shown.failed && ctx.Err() == nil {
		if o.shown.failed = failed; failed {
			o.cfg.Log.Warn("the KeyRing cannot be written; the state stands in this log alone", "error", err, "hint", "apply what hsm-kms manifests operator prints; docs/operate.md")
		}
	}
	return &status
}

// status is the decision in the words of the KeyRing.
func (o *Operator) status(d state.Decision, now time.Time) Status {
	was := o.shown.status
	s := Status{
		State: d.State, Since: was.Since, Message: d.Reason, Hint: d.Hint, Leader: o.cfg.Node, Retirable: append([]string{}, d.Retirable...),
		History: was.History,
	}
	ready, expected := o.countNodes()
	s.Nodes = fmt.Sprintf("%d/%d", ready, expected)
	o.mu.Lock()
	s.ObjectsLeft = o.left
	o.mu.Unlock()
	if !d.Next.IsZero() {
		s.NextStep = d.Next.UTC().Format(time.RFC3339)
	}
	if id, err := envelope.ParseKeyID(d.Current.ID); err == nil {
		s.CurrentKey, s.Fingerprint = d.Current.ID, id.FingerprintHex()
		if !d.Current.Activates.IsZero() {
			s.ActiveSince = d.Current.Activates.UTC().Format(time.RFC3339)
		}
	}
	if len(d.Retirable) > 0 {
		key := d.Retirable[0]
		s.Command = strings.TrimSpace(fmt.Sprintf("hsm-kms keys retire %s --evidence %s %s", key, o.kept.path(key), o.cfg.RetireFlags))
	}
	if s.State != was.State || was.Since.IsZero() {
		s.Since = metav1.NewTime(now.Truncate(time.Second))
		s.History = append(append([]Change{}, was.History...), Change{s.Since, s.State, s.Message})
		s.History = s.History[max(0, len(s.History)-maxHistory):]
	}
	s.Conditions = conditions(was.Conditions, now, o.conditions(d))
	return s
}

// conditions say one thing each, in words of its own.
func (o *Operator) conditions(d state.Decision) []metav1.Condition {
	agreed := metav1.Condition{Type: "Agreed", Status: metav1.ConditionTrue, Reason: "SameKey", Message: "every node writes under " + d.Current.ID}
	if d.Current.ID == "" {
		agreed.Status, agreed.Reason, agreed.Message = metav1.ConditionFalse, "NotYet", "not every node is known, well, and has the same current key"
	}
	clean := metav1.Condition{Type: "Clean", Status: metav1.ConditionUnknown, Reason: "NotRead", Message: "etcd was not read since the current key changed"}
	if read := o.world.Etcd; read != nil && read.Key == d.Current.ID {
		clean.Status, clean.Reason, clean.Message = metav1.ConditionTrue, "NothingLeft", "everything was under the current key at "+read.At.UTC().Format(time.RFC3339)
		if read.Left > 0 || read.Findings != "" {
			clean.Status, clean.Reason, clean.Message = metav1.ConditionFalse, "ObjectsLeft", read.Findings
		}
	}
	stuck := metav1.Condition{Type: "Blocked", Status: metav1.ConditionFalse, Reason: "GoesOn", Message: "nobody has to do anything"}
	if d.State == state.Blocked {
		stuck.Status, stuck.Reason, stuck.Message = metav1.ConditionTrue, "NeedsPerson", d.Reason
	}
	ending := metav1.Condition{Type: "CertificatesEnding", Status: metav1.ConditionFalse, Reason: "AllGood", Message: "no certificate of a known node ends within 30 days"}
	if o.ending != "" {
		ending.Status, ending.Reason, ending.Message = metav1.ConditionTrue, "EndsSoon", o.ending
	}
	return []metav1.Condition{agreed, clean, stuck, ending}
}

// conditions keep the time of their last change.
func conditions(was []metav1.Condition, now time.Time, is []metav1.Condition) []metav1.Condition {
	for i := range is {
		is[i].LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		for _, old := range was {
			if old.Type == is[i].Type && old.Status == is[i].Status {
				is[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return is
}

func (o *Operator) countNodes() (ready, expected int) {
	for _, n := range o.world.Nodes {
		if n.Unknown == "" && n.Problem == "" {
			ready++
		}
	}
	return ready, len(o.world.Nodes)
}

// adopt goes on with the history that an earlier leader wrote. Somebody may have edited it: it is bounded, and a state that
// began in the future began now, or nobody would be told that it stands still.
func (o *Operator) adopt(ctx context.Context, now time.Time) {
	var old keyRing
	if o.kube.Get(ctx, keyRings+"/"+o.cfg.Ring, &old) != nil {
		return
	}
	o.shown.status, o.shown.uid = old.Status, string(old.UID)
	s := &o.shown.status
	s.History = s.History[max(0, len(s.History)-maxHistory):]
	if s.Since.After(now) {
		s.Since = metav1.NewTime(now.Truncate(time.Second))
	}
}

// write writes the status of the KeyRing, which is made if it is not there. Without the CRD it is an error.
func (o *Operator) write(ctx context.Context, status *Status) error {
	path := keyRings + "/" + o.cfg.Ring
	object := keyRing{TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: "KeyRing"}, ObjectMeta: metav1.ObjectMeta{Name: o.cfg.Ring}}
	if o.shown.uid == "" {
		var there metav1.PartialObjectMetadata // a status that somebody made unreadable is written over
		err := o.kube.Get(ctx, path, &there)
		if errors.Is(err, migrate.ErrGone) {
			err = o.kube.Create(ctx, keyRings, object, &there)
		}
		if err != nil {
			return fmt.Errorf("making the KeyRing %s: %w", o.cfg.Ring, err)
		}
		o.shown.uid = string(there.UID)
	}
	err := o.kube.Merge(ctx, path+"/status", map[string]any{"status": status}, nil)
	if errors.Is(err, migrate.ErrGone) {
		o.shown.uid = "" // it was deleted: the next time it is made
	}
	if err != nil {
		return fmt.Errorf("writing the status of the KeyRing %s: %w", o.cfg.Ring, err)
	}
	return nil
}

// event makes an Event of a change.
func (o *Operator) event(ctx context.Context, status *Status, now time.Time) error {
	kind, text := "Normal", status.Message
	if status.State == state.Blocked {
		kind, text = "Warning", status.Message+"; "+status.Hint
	}
	if more := "; on " + o.cfg.Node + ": " + status.Command; status.Command != "" && len(text)+len(more) <= maxMessage {
		text += more // whole or not at all: without its last flags it would be another command
	}
	at := metav1.NewTime(now)
	return o.kube.Create(ctx, eventsPath, map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"generateName": o.cfg.Ring + "."},
		"involvedObject": map[string]any{"apiVersion": apiVersion, "kind": "KeyRing", "name": o.cfg.Ring, "uid": o.shown.uid},
		"type":           kind, "reason": status.State, "message": strings.ToValidUTF8(text[:min(len(text), maxMessage)], ""),
		"firstTimestamp": at, "lastTimestamp": at, "count": 1, "source": map[string]any{"component": "hsm-kms-operate", "host": o.cfg.Node},
	}, nil)
}

// showProgress shows the objects that are left every now and then, until it is stopped.
func (o *Operator) showProgress(ctx context.Context, d state.Decision) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var showing sync.WaitGroup
	showing.Go(func() {
		tick := time.NewTicker(progressing)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				o.show(ctx, d)
			}
		}
	})
	return func() { cancel(); showing.Wait() }
}

// words are an error as people see it in a KeyRing or a Lease: as the commands print it.
func words(err error) string { return evidence.Printable(evidence.InWords(err.Error())) }
