#include "lane.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "crossing.h"

static atomic_int busy, stopped;

void lanes_stop(void) { atomic_store(&stopped, 1); }

int lanes_busy(void) { return atomic_load(&busy); }

int lane_well_formed(const lane_request *q)
{
	if (q->nonce_len > LANE_NONCE || q->associated_len > LANE_ASSOCIATED || q->in_len > LANE_IN)
		return 0;
	if (q->size != sizeof *q + q->nonce_len + q->associated_len + q->in_len)
		return 0;
	switch (q->operation) {
	case LANE_OPEN:
	case LANE_CLOSE:
		return q->size == sizeof *q;
	case LANE_ENCRYPT_GCM:
	case LANE_DECRYPT_GCM:
		return q->nonce_len > 0 && q->associated_len > 0 && q->in_len > 0;
	case LANE_ENCRYPT_OWN_IV:
		return q->nonce_len > 0 && q->nonce_len <= LANE_OWN_IV && q->associated_len > 0 && q->in_len > 0;
	case LANE_HMAC:
	case LANE_ECB:
		return q->nonce_len == 0 && q->associated_len == 0 && q->in_len > 0;
	}
	return 0;
}

// read_request reads one request into message, which has room for LANE_MESSAGE. 0: the other end is gone, or sent what is
// no request. A program that keeps to the protocol sends no more before the answer, so one read takes the whole.
static int read_request(int fd, unsigned char *message, lane_request *q)
{
	size_t have = 0;
	while (have < sizeof *q || have < q->size) {
		ssize_t got = read(fd, message + have, LANE_MESSAGE - have);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		have += (size_t)got;
		if (have < sizeof *q)
			continue;
		memcpy(q, message, sizeof *q);
		if (!lane_well_formed(q) || have > q->size)
			return 0;
	}
	return 1;
}

static int write_all(int fd, const unsigned char *from, size_t n)
{
	while (n > 0) {
		ssize_t put = write(fd, from, n);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return 0;
		from += put;
		n -= (size_t)put;
	}
	return 1;
}

// wipe is a memset that the compiler must not leave out.
static void wipe(void *p, size_t n)
{
	memset(p, 0, n);
	__asm__ volatile("" : : "r"(p) : "memory");
}

static void one_call(lane_answer *a, ck_ulong rv, long long start)
{
	a->init_rv = rv;
	a->init_ns = crossing_now() - start;
}

// perform makes the calls of a well-formed request whose body is nonce, associated data and input; out has room for
// LANE_IN and LANE_SLACK.
static void perform(void *list, const lane_request *q, unsigned char *body, ck_ulong *session, lane_answer *a, unsigned char *out)
{
	unsigned char *associated = body + q->nonce_len, *in = associated + q->associated_len;
	long long start = crossing_now();
	ck_ulong room = q->in_len + LANE_SLACK;
	uint32_t iv_len = 0; // of the output
	crossing c;
	switch (q->operation) {
	case LANE_OPEN:
		one_call(a, crossing_open(list, (ck_ulong)q->object, (ck_ulong)q->flags, session), start);
		a->session = a->init_rv == 0 ? *session : 0;
		return;
	case LANE_CLOSE:
		one_call(a, crossing_close(list, *session), start);
		return;
	case LANE_HMAC:
		crossing_hmac(list, *session, (ck_ulong)q->object, in, q->in_len, out, room, &c);
		break;
	case LANE_ECB:
		crossing_ecb(list, *session, (ck_ulong)q->object, in, q->in_len, out, room, &c);
		break;
	case LANE_ENCRYPT_OWN_IV:
		iv_len = q->nonce_len;
		room -= iv_len;
		// fall through
	default:
		crossing_gcm(list, q->operation == LANE_DECRYPT_GCM, *session, (ck_ulong)q->object, body, q->nonce_len,
		             associated, q->associated_len, in, q->in_len, out + iv_len, room, &c);
		memcpy(out, body, iv_len); // where the module may have written its own
	}
	a->init_rv = c.init_rv;
	a->rv = c.rv;
	a->init_ns = c.init_ns;
	a->ns = c.ns;
	a->second = (uint32_t)c.second;
	if (c.init_rv != 0 || c.rv != 0)
		return;
	if (c.out_len > room)
		a->rv = CROSSING_GENERAL_ERROR; // a module that reports more than it was given room for
	else
		a->out_len = iv_len + (uint32_t)c.out_len;
}

// answer makes the answer to the request q, with which message begins; out is its place for the output. 0: none is made
// any more.
static int answer(void *list, const lane_request *q, unsigned char *message, ck_ulong *session, lane_answer *a, unsigned char *out)
{
	memset(a, 0, sizeof *a);
	a->operation = q->operation;
	a->sequence = q->sequence;
	a->generation = q->generation;
	atomic_fetch_add(&busy, 1);
	int go = !atomic_load(&stopped); // after busy: the one who stops the lanes waits for those that are busy
	if (go)
		perform(list, q, message + sizeof *q, session, a, out);
	atomic_fetch_sub(&busy, 1);
	a->size = (uint32_t)sizeof *a + a->out_len;
	return go;
}

void lane_serve(void *list, int requests, int answers)
{
	unsigned char in[LANE_MESSAGE], out[LANE_MESSAGE];
	ck_ulong session = 0;
	lane_request q;
	lane_answer a;
	while (read_request(requests, in, &q)) {
		int sent = answer(list, &q, in, &session, &a, out + sizeof a);
		memcpy(out, &a, sizeof a);
		sent = sent && write_all(answers, out, a.size);
		wipe(in, q.size);
		wipe(out, sizeof a + LANE_IN + LANE_SLACK);
		if (!sent)
			break;
	}
	wipe(in, sizeof in);
	close(requests);
	close(answers);
}
