package proc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FullPipe makes a pipe that takes no more bytes: who writes to it waits, as for a standard error that nobody reads. The caller
// closes both ends.
func FullPipe() (reader, writer *os.File, err error) {
	reader, writer, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	fd := int(writer.Fd())
	if err = unix.SetNonblock(fd, true); err == nil {
		for err == nil {
			_, err = unix.Write(fd, make([]byte, 4<<10))
		}
	}
	if errors.Is(err, unix.EAGAIN) {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("filling a pipe: %w", err), reader.Close(), writer.Close())
	}
	return reader, writer, nil
}
