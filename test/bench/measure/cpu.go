package measure

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is USER_HZ, the unit of times in /proc: 100 a second on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// CPU is processor time, of the whole machine and of what is measured.
type CPU struct {
	all  time.Duration // busy and idle
	busy time.Duration // by anybody, other guests of the same host included
	own  time.Duration // of this process, of its children that have ended, and of those that were named
}

// CPUNow reads them; pids are the children that run. Where there is no /proc, ok is false.
func CPUNow(pids ...int) (c CPU, ok bool) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, false
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	// proc_stat(5): cpu user nice system idle iowait irq softirq steal (guest times are in user already).
	for i, field := range strings.Fields(string(first))[1:9] {
		ticks, _ := strconv.Atoi(field)
		spent := time.Duration(ticks) * clockTick
		c.all += spent
		if i != 3 && i != 4 {
			c.busy += spent
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		if err := syscall.Getrusage(who, &used); err != nil {
			return c, false
		}
		c.own += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	for _, pid := range pids {
		c.own += cpuOf(pid)
	}
	return c, true
}

// cpuOf is what one process has used (proc_pid_stat(5): utime and stime are the 12th and 13th after the name).
func cpuOf(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0 // it has ended
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * clockTick
}

// Others is the share of the machine's processors, in percent, that somebody else used between two readings.
func Others(before, after CPU) float64 {
	all := after.all - before.all
	if all <= 0 {
		return 0
	}
	return max(0, 100*float64((after.busy-before.busy)-(after.own-before.own))/float64(all))
}

// Processor names the machine's CPU; where the system does not tell, its architecture.
func Processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%s x %d", strings.TrimSpace(value), runtime.NumCPU())
		}
	}
	return runtime.GOARCH
}
