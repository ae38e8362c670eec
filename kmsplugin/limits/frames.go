package limits

// HTTP/2 as far as it is needed to know which requests are open (RFC 9113, sections 3.4, 4.1 and 6).
const (
	prefaceSize = 24 // "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	headerSize  = 9  // of a frame: three bytes of length, type, flags, four of the stream

	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameContinuation = 0x9
	flagEndStream     = 0x1
)

// frame is the header of one.
type frame struct {
	length int // bytes of payload
	kind   byte
	ends   bool // the sender sends no more on the stream
	stream uint32
}

// frames finds the frames in the bytes of one direction, however they are cut.
type frames struct {
	skip   int // bytes of the preface or of a payload that are still to come
	have   int // bytes of the next header that have come
	header [headerSize]byte
	count  int // headers so far
}

// feed takes the next bytes, and gives each frame whose header they complete.
func (p *frames) feed(b []byte, each func(frame)) {
	for len(b) > 0 {
		if p.skip > 0 {
			n := min(p.skip, len(b))
			p.skip -= n
			b = b[n:]
			continue
		}
		n := copy(p.header[p.have:], b)
		p.have += n
		b = b[n:]
		if p.have < headerSize {
			return
		}
		h := &p.header
		p.have, p.count = 0, p.count+1
		p.skip = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		kind := h[3]
		each(frame{
			length: p.skip, kind: kind,
			ends:   h[4]&flagEndStream != 0 && (kind == frameData || kind == frameHeaders),
			stream: (uint32(h[5])<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8])) & (1<<31 - 1),
		})
	}
}

// one reports whether the first frame is complete, its payload included.
func (p *frames) one() bool { return p.count > 1 || p.count == 1 && p.skip == 0 }
