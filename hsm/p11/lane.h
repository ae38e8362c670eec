// A lane: one session of the module behind two pipes, one for requests and one for answers, with at most one request under
// way. The other ends are in another process, and each side treats the other as hostile: every length is checked before it
// is used.
//
// Pipes, not a socket pair: reading from a Unix socket wakes the sender's thread or poller ("there is room again"),
// which then finds nothing to do. That costs two wake-ups of threads per request.
//
// Numbers are in the machine's own byte order, because both ends are the same program on the same machine.
#ifndef HSM_KMS_LANE_H
#define HSM_KMS_LANE_H

#include <stdint.h>

enum { LANE_MESSAGE = 8192, LANE_NONCE = 64, LANE_ASSOCIATED = 2048, LANE_IN = 4096, LANE_SLACK = 80, LANE_OWN_IV = 16 };

enum { LANE_OPEN = 1, LANE_CLOSE = 2, LANE_ENCRYPT_GCM = 3, LANE_DECRYPT_GCM = 4, LANE_HMAC = 5, LANE_ENCRYPT_OWN_IV = 6, LANE_ECB = 7 };

// The request: this, then the nonce, the associated data and the input.
typedef struct {
	uint32_t size;      // of the whole message
	uint32_t operation; // LANE_...
	uint64_t sequence, generation;
	uint64_t object; // the key; LANE_OPEN: the slot
	uint64_t flags;  // LANE_OPEN: those of C_OpenSession
	uint32_t nonce_len, associated_len, in_len, unused;
} lane_request;

// The answer: this, then the output; that of LANE_ENCRYPT_OWN_IV begins with the IV, which is as long as the nonce of the
// request. Operation, sequence and generation are the request's.
typedef struct {
	uint32_t size, operation;
	uint64_t sequence, generation;
	uint64_t session; // LANE_OPEN: the handle
	uint64_t init_rv, rv;
	int64_t init_ns, ns;
	uint32_t second; // the second call was made
	uint32_t out_len;
} lane_answer;

_Static_assert(sizeof(lane_request) == 56, "no padding");
_Static_assert(sizeof(lane_answer) == 72, "no padding");

// lane_well_formed reports whether a request's lengths and operation are what they may be.
int lane_well_formed(const lane_request *q);

// lane_serve answers requests until the other side closes them or sends what is no request; then it closes both
// descriptors, which must block. The session is left as it is: only LANE_CLOSE closes it.
void lane_serve(void *list, int requests, int answers);

// lanes_stop keeps every lane from another call. One that is asked for one ends.
void lanes_stop(void);

// lanes_busy is how many lanes are inside the module.
int lanes_busy(void);

#endif
