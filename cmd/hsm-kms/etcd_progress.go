package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/hsm-kms/hsm-kms/evidence"
)

const (
	barWidth    = 30
	barInterval = 100 * time.Millisecond
	clearLine   = "\r\x1b[K"
)

// bar is a progress bar on a terminal. It is used by one goroutine at a time.
type bar struct {
	out   io.Writer
	last  time.Time
	drawn bool
}

// progress shows how far a command is, if stderr is a terminal; done wipes the line away.
func (c *command) progress() (show evidence.Progress, done func()) {
	file, ok := c.errOut.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return nil, func() {}
	}
	b := &bar{out: file}
	return b.show, b.clear
}

func (b *bar) show(stage string, done, total int64) {
	if now := time.Now(); now.Sub(b.last) >= barInterval {
		b.last, b.drawn = now, true
		fmt.Fprint(b.out, clearLine, barLine(stage, done, total))
	}
}

func (b *bar) clear() {
	if b.drawn {
		fmt.Fprint(b.out, clearLine)
	}
}

func barLine(stage string, done, total int64) string {
	if total <= 0 {
		return fmt.Sprintf("%s: %s", stage, grouped(done))
	}
	done = min(done, total)
	filled := int(done * barWidth / total)
	return fmt.Sprintf("%s [%s%s] %3d%% of %s", stage, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), done*100/total, grouped(total))
}

// grouped writes a number as people read it: 1,234,567.
func grouped(n int64) string {
	digits := fmt.Sprint(n)
	var b strings.Builder
	for i, digit := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return b.String()
}
