package audit

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// A disk that hangs keeps the writer's lock for as long as it likes. The metrics do not wait for it, and say so.
func TestStatsWhileTheDiskHangs(t *testing.T) {
	t.Parallel()
	w := open(t, trail(t), func(*Options) {})
	record(t, w, 1, 2)
	before := w.Stats()

	// A pipe that is full blocks as such a disk does.
	reader, writer, err := proc.FullPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	fd := int(writer.Fd())
	if err := unix.SetNonblock(fd, true); err != nil { // or Close would not end the write
		t.Fatal(err)
	}
	w.mu.Lock()
	disk := w.file
	w.file, w.fd, w.size = writer, fd, 0
	w.mu.Unlock()
	recorded := make(chan error, 1)
	go func() { recorded <- w.Record(context.Background(), Record{Time: time.Now(), Operation: "Decrypt"}) }()
	for w.stats.writing.began.Load() == 0 { // until it has the lock
		time.Sleep(time.Millisecond)
	}
	got := make(chan Stats, 1)
	go func() { got <- w.Stats() }()
	select {
	case s := <-got:
		if s != before {
			t.Errorf("%+v, before %+v", s, before)
		}
	case <-time.After(10 * time.Second):
		_ = writer.Close()
		t.Fatal("Stats waits for the disk")
	}
	if w.stats.writing.began.Add(-int64(2 * hungAfter)); !w.Stats().Failing {
		t.Error("a write that hangs is not told of")
	}
	// A request behind it is given up on when its time is over, and the trail tells of it later.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Record(ended, Record{Time: time.Now(), Operation: "Decrypt"}); !errors.Is(err, errBusy) {
		t.Errorf("behind a disk that hangs: %v", err)
	}
	if got := w.Stats().Lost; got != before.Lost+1 {
		t.Errorf("%d operations are lost, before %d", got, before.Lost)
	}
	_ = writer.Close() // the write ends with an error
	<-recorded
	w.mu.Lock()
	w.file, w.fd = disk, int(disk.Fd())
	w.size = sizeOf(t, disk)
	w.mu.Unlock()
	_ = w.Close() // its flush of the pipe failed
	text, err := os.ReadFile(w.path)
	if err != nil || !strings.Contains(string(text), `"lost":2`) {
		t.Errorf("the trail does not tell of what is lost: %v\n%s", err, text)
	}
}

func sizeOf(t *testing.T, file *os.File) int64 {
	t.Helper()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a attempt
		a.begin()
		time.Sleep(hungAfter)
		if a.hangs() {
			t.Error("it hangs too early")
		}
		time.Sleep(time.Millisecond)
		if !a.hangs() {
			t.Error("it does not hang")
		}
		a.end()
		if a.hangs() {
			t.Error("it hangs after its end")
		}
	})
}
