package worker

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"
)

// The bounds of what is logged of the library's output.
const (
	outputLine  = 1024 // bytes
	outputBurst = 20   // lines, and then one in each outputPause
	outputPause = time.Second
)

// drain reads what the worker prints until it has ended, and logs a part of it. It never stops reading before: a library
// whose output nobody reads would block.
func drain(output *os.File, ended <-chan struct{}, log *slog.Logger) {
	defer output.Close()
	go func() {
		<-ended
		_ = output.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a forked helper may keep the other end
	}()
	lines := bufio.NewReaderSize(output, outputLine)
	left, dropped, last := outputBurst, 0, time.Now()
	for {
		line, isPrefix, err := lines.ReadLine()
		for more := isPrefix; more && err == nil; {
			_, more, err = lines.ReadLine()
		}
		if now := time.Now(); now.Sub(last) >= outputPause {
			left, last = max(left, min(left+int(now.Sub(last)/outputPause), outputBurst)), now
		}
		switch {
		case len(line) == 0:
		case left > 0:
			left--
			log.Warn("the PKCS#11 module prints", "line", string(line), "droppedBefore", dropped)
			dropped = 0
		default:
			dropped++
		}
		if err != nil {
			if dropped > 0 {
				log.Warn("the PKCS#11 module printed more than is logged", "droppedLines", dropped)
			}
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				log.Warn("the output of the PKCS#11 module cannot be read", "error", err)
			}
			return
		}
	}
}
