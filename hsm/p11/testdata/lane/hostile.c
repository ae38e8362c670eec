// hostile feeds a lane with what an honest program never sends, under the sanitizers that lane_test.go compiles it with.
// A module of its own stands behind the lane: it looks at every byte that it is given, and fills the room for its output.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../crossing.h"
#include "../../lane.h"

typedef struct {
	unsigned char *iv;
	ck_ulong iv_len, iv_bits;
	unsigned char *aad;
	ck_ulong aad_len, tag_bits;
} gcm_params;

typedef struct {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong parameter_len;
} mechanism;

static volatile unsigned seen; // keeps the reads

static void look(const unsigned char *p, ck_ulong n)
{
	for (ck_ulong i = 0; i < n; i++)
		seen += p[i];
}

static int calls, lie;

static unsigned char *kept_iv; // of the last Init: a module may write there until the operation has returned
static ck_ulong kept_iv_len;

static ck_ulong init(ck_ulong session, mechanism *m, ck_ulong key)
{
	(void)session;
	(void)key;
	calls++;
	kept_iv_len = 0;
	if (m->parameter != NULL) {
		gcm_params *p = m->parameter;
		kept_iv = p->iv;
		kept_iv_len = p->iv_len;
		look(p->iv, p->iv_len);
		look(p->aad, p->aad_len);
	}
	return 0;
}

static ck_ulong operate(ck_ulong session, unsigned char *in, ck_ulong in_len, unsigned char *out, ck_ulong *out_len)
{
	(void)session;
	look(in, in_len);
	memset(out, 0xA5, *out_len);
	memset(kept_iv, 0x5A, kept_iv_len);
	if (lie)
		*out_len += 1; // more than there is room for
	return 0;
}

static ck_ulong open_session(ck_ulong slot, ck_ulong flags, void *a, void *n, ck_ulong *session)
{
	(void)slot;
	(void)flags;
	(void)a;
	(void)n;
	*session = 42;
	return 0;
}

static ck_ulong close_session(ck_ulong session) { return session == 42 ? 0 : 0xB3; }

static struct {
	struct { unsigned char major, minor; } version;
	void *function[68];
} list;

typedef struct {
	int requests, answers;
} served;

static void *serve(void *arg)
{
	lane_serve(&list, ((served *)arg)->requests, ((served *)arg)->answers);
	return NULL;
}

// talk sends n bytes to a lane and reads what comes until it closes.
static size_t talk(const unsigned char *bytes, size_t n, unsigned char *answer, size_t room)
{
	int requests[2], answers[2];
	if (pipe(requests) != 0 || pipe(answers) != 0)
		abort();
	for (size_t put = 0; put < n;) { // less than a pipe holds
		ssize_t some = write(requests[1], bytes + put, n - put);
		if (some <= 0)
			abort();
		put += (size_t)some;
	}
	close(requests[1]);
	served arg = { requests[0], answers[1] };
	pthread_t thread;
	if (pthread_create(&thread, NULL, serve, &arg) != 0)
		abort();
	size_t got = 0;
	for (ssize_t some; got < room && (some = read(answers[0], answer + got, room - got)) > 0;)
		got += (size_t)some;
	close(answers[0]);
	pthread_join(thread, NULL);
	return got;
}

static unsigned long long state = 0x9E3779B97F4A7C15;

static unsigned random32(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (unsigned)(state >> 16);
}

// some gives a length: often one at a bound.
static unsigned some(unsigned bound)
{
	switch (random32() % 6) {
	case 0: return 0;
	case 1: return bound;
	case 2: return bound + 1;
	case 3: return 0xFFFFFFFFu - random32() % 3;
	default: return random32() % (bound + 1);
	}
}

int main(void)
{
	list.function[12] = open_session;
	list.function[13] = close_session;
	list.function[29] = list.function[33] = list.function[42] = init;
	list.function[30] = list.function[34] = list.function[43] = operate;
	int own_ivs = 0;
	unsigned char *bytes = malloc(4 * LANE_MESSAGE), *answer = malloc(16 * LANE_MESSAGE);
	for (int round = 0; round < 3000; round++) {
		lane_request q;
		memset(&q, 0, sizeof q);
		int honest = random32() % 2;
		q.operation = random32() % 9;
		q.sequence = random32();
		q.nonce_len = honest ? 12 : some(LANE_NONCE);
		q.associated_len = honest ? 1 + random32() % LANE_ASSOCIATED : some(LANE_ASSOCIATED);
		q.in_len = honest ? 1 + random32() % LANE_IN : some(LANE_IN);
		if (honest && (q.operation == LANE_HMAC || q.operation == LANE_ECB))
			q.nonce_len = q.associated_len = 0;
		q.size = (uint32_t)sizeof q + q.nonce_len + q.associated_len + q.in_len;
		if (!honest && random32() % 4 == 0)
			q.size = some(LANE_MESSAGE);
		lie = random32() % 8 == 0;
		size_t n = sizeof q + random32() % (2 * LANE_MESSAGE);
		if (honest)
			n = q.size; // as an honest program
		for (size_t i = 0; i < n; i++)
			bytes[i] = (unsigned char)random32();
		memcpy(bytes, &q, sizeof q);
		size_t got = talk(bytes, n, answer, 16 * LANE_MESSAGE);
		if (lane_well_formed(&q) && n > q.size && got != 0) {
			fprintf(stderr, "round %d: an answer to a request that something follows\n", round);
			return 1;
		}
		if (lane_well_formed(&q) && n == q.size) {
			lane_answer a;
			memcpy(&a, answer, sizeof a);
			if (got < sizeof a || a.sequence != q.sequence || a.size > LANE_MESSAGE || a.size > got) {
				fprintf(stderr, "round %d: no whole answer to a whole request (%zu bytes)\n", round, got);
				return 1;
			}
			if (lie && q.operation >= LANE_ENCRYPT_GCM && (a.rv != CROSSING_GENERAL_ERROR || a.out_len != 0)) {
				fprintf(stderr, "round %d: a module that lies about its output is believed\n", round);
				return 1;
			}
			if (!lie && q.operation == LANE_ENCRYPT_OWN_IV) {
				own_ivs++;
				if (a.out_len != q.in_len + LANE_SLACK || answer[sizeof a] != 0x5A || answer[sizeof a + q.nonce_len - 1] != 0x5A ||
				    answer[sizeof a + q.nonce_len] != 0xA5 || answer[a.size - 1] != 0xA5) {
					fprintf(stderr, "round %d: the IV of the module does not stand before its output\n", round);
					return 1;
				}
			}
		}
	}
	printf("%d operations\n", calls);
	free(bytes);
	free(answer);
	return calls > 500 && own_ivs > 50 ? 0 : 1;
}
