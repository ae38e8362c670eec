package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	transform "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// result is one line of the table.
type result struct {
	name    string
	took    time.Duration // median
	peak    int64         // largest resident set of the process in bytes; 0: not a process
	bare    time.Duration // what it is compared with; 0: nothing
	objects int           // 0: all that there are at the end
}

// memoryGoal bounds the resident set of a command, in MiB.
const memoryGoal = 200

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// judge adds the result of a command, and its figures: how many times what is bare it takes, and its memory.
func (w *rig) judge(r result, what string, bound float64) {
	w.results = append(w.results, r)
	w.Figure(r.name, r.took.Seconds()/r.bare.Seconds(), "x "+what, measure.AtMost(bound))
	w.Figure(r.name+", memory", mib(r.peak), "MiB", measure.Below(memoryGoal))
}

// several is how many ranges are read at once beside the one.
const several = 4

// spent is what one process took.
type spent struct {
	took time.Duration
	peak int64
	out  []byte
}

// spend runs a program to its end. Its peak is asked of the kernel while it runs (VmHWM, every few milliseconds): what
// wait4 tells afterwards counts the memory of the process that forked, too.
func spend(ctx context.Context, env []string, path string, args ...string) (spent, error) {
	cmd := proc.Command(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return spent{}, fmt.Errorf("starting %s: %w", filepath.Base(path), err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s := spent{}
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-tick.C:
			s.peak = max(s.peak, residentPeak(cmd.Process.Pid))
		case err := <-ended:
			tick.Stop()
			s.took, s.out = time.Since(began), stdout.Bytes()
			if err != nil {
				return s, fmt.Errorf("running %s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, stderr.String())
			}
			return s, nil
		}
	}
}

// residentPeak is the largest resident set that a running process has had, in bytes; 0: unknown.
func residentPeak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kB int64
	if _, err := fmt.Sscan(after, &kB); err != nil {
		return 0
	}
	return kB << 10
}

// etcdCommand runs hsm-kms etcd.
func (w *rig) etcdCommand(ctx context.Context, args ...string) (spent, error) {
	args = slices.Concat([]string{"etcd"}, args, []string{"--config", w.plugin.Config(), "-o", "json"})
	return spend(ctx, w.token.Env(), w.options.Bin, args...)
}

// median runs f in turns with bare and gives the medians.
func median(rounds int, f, bare func() (spent, error)) (measured, compared spent, err error) {
	var a, b []spent
	for range rounds {
		for _, turn := range []struct {
			run func() (spent, error)
			to  *[]spent
		}{{bare, &b}, {f, &a}} {
			s, err := turn.run()
			if err != nil {
				return spent{}, spent{}, err
			}
			*turn.to = append(*turn.to, s)
		}
	}
	middle := func(all []spent) spent {
		peak := slices.MaxFunc(all, func(x, y spent) int { return int(x.peak - y.peak) }).peak
		slices.SortFunc(all, func(x, y spent) int { return int(x.took - y.took) })
		m := all[len(all)/2]
		m.peak = peak
		return m
	}
	return middle(a), middle(b), nil
}

// alone is median with nothing beside it.
func alone(rounds int, f func() (spent, error)) (spent, error) {
	measured, _, err := median(rounds, f, func() (spent, error) { return spent{}, nil })
	return measured, err
}

// live measures against etcd.
func (w *rig) live(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	read := func(ranges int) (spent, error) {
		return spend(ctx, nil, self, "-role", roleRead, "-etcd", w.url, "-objects", fmt.Sprint(w.options.objects), "-ranges", fmt.Sprint(ranges))
	}
	report, bare, err := median(w.options.rounds,
		func() (spent, error) { return w.etcdCommand(ctx, "report", "--endpoints", w.url) },
		func() (spent, error) { return read(1) })
	if err != nil {
		return err
	}
	together, err := alone(w.options.rounds, func() (spent, error) { return read(several) })
	if err != nil {
		return err
	}
	if err := w.complete(report.out, w.options.objects); err != nil {
		return err
	}
	w.results = append(w.results,
		result{name: "bare paged read", took: bare.took, peak: bare.peak},
		result{name: fmt.Sprintf("the same in %d ranges at once", several), took: together.took, peak: together.peak, bare: bare.took})
	w.judge(result{name: "etcd report", took: report.took, peak: report.peak, bare: bare.took}, "a bare paged read", 1)
	verify, cpu, err := median(w.options.rounds,
		func() (spent, error) { return w.etcdCommand(ctx, "verify", "--endpoints", w.url) },
		func() (spent, error) { return w.bareDecrypt(ctx) })
	if err != nil {
		return err
	}
	both := bare.took + cpu.took
	w.results = append(w.results, result{name: "bare decryption on all CPUs", took: cpu.took})
	w.judge(result{name: "etcd verify", took: verify.took, peak: verify.peak, bare: both}, "(a bare paged read and bare decryption)", 1.3)
	return nil
}

// curve measures against an etcd that grows. There is no bare reading beside it: what etcd counts for one grows with the square
// of the objects.
func (w *rig) curve(ctx context.Context) error {
	filled := 0
	for _, objects := range w.options.curve {
		if err := w.fill(ctx, filled, objects); err != nil {
			return err
		}
		filled = objects
		if status, err := w.client.Status(ctx, w.url); err == nil {
			tell("the database has %d MiB", status.DbSize>>20)
		}
		for _, command := range []string{"report", "verify"} {
			run, err := alone(w.options.rounds, func() (spent, error) { return w.etcdCommand(ctx, command, "--endpoints", w.url) })
			if err != nil {
				return err
			}
			if command == "report" {
				if err := w.complete(run.out, objects); err != nil {
					return err
				}
			}
			name := fmt.Sprintf("etcd %s, %d objects", command, objects)
			tell("%s: %s", name, run.took.Round(time.Millisecond))
			w.results = append(w.results, result{name: name, took: run.took, peak: run.peak, objects: objects})
			w.Figure(name+", memory", mib(run.peak), "MiB", measure.Below(memoryGoal))
		}
	}
	return nil
}

// snapshot saves one and measures the same over it.
func (w *rig) snapshot(ctx context.Context) error {
	path := filepath.Join(w.dir, "snapshot.db")
	if _, err := spend(ctx, nil, w.programs.Path("etcdctl"), "--endpoints", w.url, "--command-timeout=10m", "snapshot", "save", path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking at the snapshot: %w", err)
	}
	tell("snapshot: %d MiB", info.Size()>>20)
	report, bare, err := median(w.options.rounds,
		func() (spent, error) { return w.etcdCommand(ctx, "report", "--snapshot", path) },
		func() (spent, error) { return spend(ctx, nil, w.programs.Path("etcdutl"), "snapshot", "status", path) })
	if err != nil {
		return err
	}
	if err := w.complete(report.out, w.options.objects); err != nil {
		return err
	}
	w.results = append(w.results, result{name: "etcdutl snapshot status", took: bare.took, peak: bare.peak})
	w.judge(result{name: "etcd report --snapshot", took: report.took, peak: report.peak, bare: bare.took}, "etcdutl snapshot status", 1.3)
	for _, c := range []struct {
		name string
		args []string
	}{{"etcd verify --snapshot", nil}, {"etcd verify --snapshot --sample 1", []string{"--sample", "1"}}} {
		verify, report, err := median(w.options.rounds,
			func() (spent, error) {
				return w.etcdCommand(ctx, append([]string{"verify", "--snapshot", path}, c.args...)...)
			},
			func() (spent, error) { return w.etcdCommand(ctx, "report", "--snapshot", path) })
		if err != nil {
			return err
		}
		w.results = append(w.results, result{name: c.name, took: verify.took, peak: verify.peak, bare: report.took})
		w.Figure(c.name+", memory", mib(verify.peak), "MiB", measure.Below(memoryGoal))
	}
	return nil
}

// complete checks that a report saw everything.
func (w *rig) complete(out []byte, objects int) error {
	var report struct {
		Objects   int64
		Resources []struct {
			Resource string
			Keys     []struct{ Objects, DEKs int64 }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fmt.Errorf("decoding the report: %w", err)
	}
	deks := int64(0)
	for _, r := range report.Resources {
		for _, k := range r.Keys {
			deks += k.DEKs
		}
	}
	if report.Objects != int64(objects) || deks != int64(min(w.options.deks, objects)) || len(report.Resources) == 0 || len(report.Resources[0].Keys) > w.options.keys {
		return fmt.Errorf("the report tells of %d objects and %d DEKs: %s", report.Objects, deks, out)
	}
	return nil
}

// bareDecrypt decrypts as many values as there are objects with the API server's transformers and nothing else, a
// thousand of them over and over.
func (w *rig) bareDecrypt(ctx context.Context) (spent, error) {
	n := min(1000, w.options.objects)
	objects := make([]stored.Object, n)
	data := randomBytes(w.options.size)
	for i := range objects {
		b, err := w.value(i, data)
		if err != nil {
			return spent{}, err
		}
		v, err := stored.Parse(b)
		if err != nil {
			return spent{}, fmt.Errorf("decoding what was made: %w", err)
		}
		objects[i] = v.Object
	}
	workers := runtime.GOMAXPROCS(0)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	began := time.Now()
	for worker := range workers {
		wg.Go(func() {
			for i := worker; i < w.options.objects && errs[worker] == nil; i += workers {
				transformer, err := transform.NewHKDFExtendedNonceGCMTransformer(w.deks[i%n%len(w.deks)].Plain)
				if err == nil {
					_, _, err = transformer.TransformFromStorage(ctx, objects[i%n].Data, value.DefaultContext(key(i%n)))
				}
				errs[worker] = err
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return spent{}, fmt.Errorf("decrypting what was made: %w", err)
		}
	}
	return spent{took: time.Since(began)}, nil
}

// table writes what was measured, each line after prefix.
func (w *rig) table(to io.Writer, prefix string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d Secrets of %d bytes, %d keys, %d DEKs, %d CPUs, %s\n",
		w.options.objects, w.options.size, w.options.keys, w.options.deks, runtime.NumCPU(), measure.Processor())
	rows := [][]string{{"what", "seconds", "objects/s", "peak MiB", "x bare"}}
	for _, r := range w.results {
		ratio, peak := "-", "-"
		if r.bare > 0 {
			ratio = fmt.Sprintf("%.2f", r.took.Seconds()/r.bare.Seconds())
		}
		if r.peak > 0 {
			peak = fmt.Sprintf("%.0f", mib(r.peak))
		}
		rows = append(rows, []string{r.name, fmt.Sprintf("%.2f", r.took.Seconds()), fmt.Sprintf("%.0f", float64(cmp.Or(r.objects, w.options.objects))/r.took.Seconds()), peak, ratio})
	}
	measure.Section(&text, "", rows)
	w.Judged(&text)
	return measure.WriteLines(to, prefix, text.String())
}

// save writes the table, as comments, and what benchstat reads.
func (w *rig) save(to io.Writer) error {
	var b strings.Builder
	b.WriteString(measure.Heading("test/bench/evidence"))
	for _, r := range w.results {
		fmt.Fprintf(&b, "BenchmarkEvidence/%s 1 %d ns/op %d peak-bytes\n", measure.Joined(r.name), r.took.Nanoseconds(), r.peak)
	}
	w.Benchmarks(&b)
	if err := w.table(to, "# "); err != nil {
		return err
	}
	_, err := io.WriteString(to, b.String())
	return err
}
