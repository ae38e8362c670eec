package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is USER_HZ, the unit of times in /proc: 100 a second on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// cpu is processor time, of the whole machine and of what is measured (this process and its children).
type cpu struct {
	all  time.Duration // busy and idle
	busy time.Duration // by anybody, other guests of the same host included
	own  time.Duration
}

// cpuNow reads them. Where there is no /proc, ok is false.
func (w *world) cpuNow() (c cpu, ok bool) {
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
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return c, false
	}
	c.own = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	for _, pid := range w.children {
		c.own += cpuOf(pid())
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

// others is the share of the machine's processors, in percent, that somebody else used between two readings.
func others(before, after cpu) float64 {
	all := after.all - before.all
	if all <= 0 {
		return 0
	}
	return max(0, 100*float64((after.busy-before.busy)-(after.own-before.own))/float64(all))
}
