#!/usr/bin/env python3
"""Makes vectors.json, the test vectors of FORMAT.md: python3 vectors.py > vectors.json

It shares no code with the program: plain Python, standard library only, with its own slow AES (FIPS 197) and GHASH
(NIST SP 800-38D). It first checks itself against published vectors. Nothing is random: it always makes the same file.
"""
import hashlib
import hmac
import json
import sys

NONCE, SALT = 12, 32
LONG_NONCE = 16
AES_GCM, HMAC_KDF, HSM_IV, HOLD, HMAC_NONCE = 1, 2, 3, 4, 5
RESERVED = b"hsm-kms/"
FINGERPRINT = b"hsm-kms/fp/1"
ENVELOPE = b"hsm-kms/envelope/1\x00"
KDF = b"hsm-kms/kdf/1\x00"
OUTAGE = b"hsm-kms/outage/1\x00"
OUTAGE_KDF = b"hsm-kms/outage-kdf/1\x00"
DAY, LAST_DAY = 4, 0x00FFFFFF


# AES-256, FIPS 197 ---------------------------------------------------------------------------------------------------

def times_x(a):
    return ((a << 1) ^ (0x11B if a & 0x80 else 0)) & 0xFF


def field_mul(a, b):
    out = 0
    while b:
        if b & 1:
            out ^= a
        a, b = times_x(a), b >> 1
    return out


def make_sbox(box):
    for x in range(256):
        inverse = next((y for y in range(256) if field_mul(x, y) == 1), 0)
        out = 0x63
        for shift in range(5):
            out ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xFF
        box.append(out)
    return box


SBOX = make_sbox([])


def expand(key):
    words, rcon = [list(key[i:i + 4]) for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        w = words[i - 1]
        if i % 8 == 0:
            w = [SBOX[b] for b in w[1:] + w[:1]]
            w[0], rcon = w[0] ^ rcon, times_x(rcon)
        elif i % 8 == 4:
            w = [SBOX[b] for b in w]
        words.append(list(xor(words[i - 8], w)))
    return [sum(words[i:i + 4], []) for i in range(0, 60, 4)]


def aes(key, block):
    rounds = expand(key)
    s = xor(block, rounds[0])
    for number, round_key in enumerate(rounds[1:], 1):
        s = [SBOX[s[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                col = s[c:c + 4]
                for i in range(4):
                    a, b, d, e = col[i], col[(i + 1) % 4], col[(i + 2) % 4], col[(i + 3) % 4]
                    mixed.append(times_x(a) ^ times_x(b) ^ b ^ d ^ e)
            s = mixed
        s = xor(s, round_key)
    return s


# GCM, NIST SP 800-38D ----------------------------------------------------------------------------------------------

def ghash(h, data):
    h, y = int.from_bytes(h, "big"), 0
    for i in range(0, len(data), 16):
        x, y, v = y ^ int.from_bytes(data[i:i + 16], "big"), 0, h
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                y ^= v
            v = (v >> 1) ^ (0xE1 << 120 if v & 1 else 0)
    return y.to_bytes(16, "big")


def pad(data):
    return data + bytes(-len(data) % 16)


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def first_counter(key, nonce):
    if len(nonce) == 12:
        return nonce + b"\x00\x00\x00\x01"
    return ghash(aes(key, bytes(16)), pad(nonce) + (len(nonce) * 8).to_bytes(16, "big"))


def plus(counter, n):
    return counter[:12] + ((int.from_bytes(counter[12:], "big") + n) % 2**32).to_bytes(4, "big")


def gcm(key, nonce, associated, plaintext):
    counter = first_counter(key, nonce)
    stream = b"".join(bytes(aes(key, plus(counter, 1 + i))) for i in range((len(plaintext) + 15) // 16))
    ciphertext = xor(plaintext, stream)
    lengths = (len(associated) << 67 | len(ciphertext) << 3).to_bytes(16, "big")
    tag = ghash(aes(key, bytes(16)), pad(associated) + pad(ciphertext) + lengths)
    return ciphertext + xor(tag, aes(key, counter))


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def check_primitives():
    h = bytes.fromhex
    # FIPS 197, appendix C.3.
    assert aes(bytes(range(32)), h("00112233445566778899aabbccddeeff")).hex() == "8ea2b7ca516745bfeafc49904b496089"
    # The GCM specification (McGrew, Viega), appendix B, test cases 13 and 16.
    assert gcm(bytes(32), bytes(12), b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    sealed = gcm(h("feffe9928665731c6d6a8f9467308308" * 2), h("cafebabefacedbaddecaf888"),
                 h("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
                 h("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                   "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"))
    assert sealed[:16].hex() == "522dc1f099567d07f47f37a32a84427d"
    assert sealed[-16:].hex() == "76fc6ece0f4e1768cddf8853bb2d551b"
    # Test case 18: a nonce of 60 bytes.
    sealed = gcm(h("feffe9928665731c6d6a8f9467308308" * 2),
                 h("9313225df88406e555909c5aff5269aa6a7a9538534f7da1e4c303d2a318a728"
                   "c3c0c95156809539fcf0e2429a6b525416aedbf5a0de6a57a637b39b"),
                 h("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
                 h("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                   "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"))
    assert sealed[:16].hex() == "5a8def2f0c9e53f1f75d7853659e2a20"
    assert sealed[-16:].hex() == "a44a8266ee1c8eb0c8b5d4cf5ae9f19a"
    # RFC 4231, test case 2.
    assert mac(b"Jefe", b"what do ya want for nothing?").hex().startswith("5bdcc146bf60754e6a042426089575c7")


# hsm-kms, FORMAT.md --------------------------------------------------------------------------------------------------

def cka_id(activation_ms, random):
    head = b"hk1-%012x-%s" % (activation_ms, random.hex().encode())
    return head + b"-" + checksum(head)


def checksum(head):
    return hashlib.sha256(head).hexdigest()[:8].encode()


def fingerprint(profile, key):
    if profile in DERIVED:
        return mac(key, FINGERPRINT)[:8]
    raw = gcm(key, FINGERPRINT, FINGERPRINT, bytes(32))[:32]
    blocks = aes(key, FINGERPRINT + b"\x00\x00\x00\x02") + aes(key, FINGERPRINT + b"\x00\x00\x00\x03")
    assert raw == blocks
    if profile == HSM_IV:
        raw = bytes(blocks)
    return hashlib.sha256(FINGERPRINT + raw).digest()[:8]


def header(profile):
    return bytes([1, profile])


def length_of(profile, unique):
    return bytes([len(unique)]) if profile == HSM_IV else b""


def associated(profile, unique, key_id):
    bound = length_of(profile, unique) if profile == HSM_IV else unique[:SALT]
    return ENVELOPE + header(profile) + bound + key_id.encode()


def kdf_input(unique, profile=HMAC_KDF):
    return KDF + header(profile) + unique[:SALT]


def seal(profile, key, key_id, unique, dek, aad=None):
    aad = associated(profile, unique, key_id) if aad is None else aad
    if profile not in DERIVED:
        return header(profile) + length_of(profile, unique) + unique + gcm(key, unique, aad, dek)
    nonce = unique[SALT:] if profile == HMAC_NONCE else bytes(NONCE)
    return header(profile) + unique + gcm(mac(key, kdf_input(unique, profile)), nonce, aad, dek)


def hold_key(ring, key, day):
    head = OUTAGE + day.to_bytes(DAY, "big")
    if ring in DERIVED:
        return mac(key, head)
    nonce = RESERVED + day.to_bytes(DAY, "big")
    blocks = bytes(aes(key, nonce + b"\x00\x00\x00\x02")) + bytes(aes(key, nonce + b"\x00\x00\x00\x03"))
    assert gcm(key, nonce, OUTAGE, bytes(32))[:32] == blocks
    return hashlib.sha256(head + blocks).digest()


def hold_kdf_input(unique):
    return OUTAGE_KDF + header(HOLD) + unique[:DAY + SALT]


def hold_associated(unique, used):
    return ENVELOPE + header(HOLD) + unique[:DAY + SALT] + used.encode()


def seal_hold(ring, key, used, unique, dek, aad=None, one_time=None):
    day = int.from_bytes(unique[:DAY], "big")
    one_time = one_time or mac(hold_key(ring, key, day), hold_kdf_input(unique))
    aad = hold_associated(unique, used) if aad is None else aad
    return header(HOLD) + unique + gcm(one_time, unique[DAY + SALT:], aad, dek)


def octets(label, n):
    """n bytes that look random and are the same in every run."""
    return b"".join(hashlib.sha256(b"%s/%d" % (label.encode(), i)).digest() for i in range(n // 32 + 1))[:n]


NAMES = {AES_GCM: "aes-gcm", HMAC_KDF: "hmac-kdf", HSM_IV: "aes-gcm-hsm-iv"}  # of rings
DERIVED = (HMAC_KDF, HMAC_NONCE)
RINGS = {**NAMES, HMAC_NONCE: NAMES[HMAC_KDF]}  # the ring that seals so
KINDS = ((AES_GCM, NONCE), (HMAC_KDF, SALT), (HSM_IV, NONCE), (HSM_IV, LONG_NONCE), (HMAC_NONCE, SALT + NONCE))
KEY, OTHER_KEY = octets("key", 32), octets("other key", 32)
OWN = cka_id(1767225600000, octets("random", 8)).decode()


def key_id(profile, key=KEY, ring="kube-secrets", version=OWN):
    return "%s/%s/%s" % (ring, version, fingerprint(profile, key).hex())


def fingerprints():
    for profile in NAMES:
        for name, key in (("key of hash bytes", KEY), ("key of zeros", bytes(32)), ("key of ones", b"\xff" * 32)):
            yield {"name": "%s: %s" % (NAMES[profile], name), "profile": NAMES[profile], "key": key.hex(),
                   "fingerprint": fingerprint(profile, key).hex(), "expect": "accept"}


def cka_ids():
    def one(name, text, ms=None, emergency=False):
        own = ms is not None
        return {"name": name, "cka_id": text.hex(), "activates_ms": ms, "emergency": emergency,
               "version": text.decode() if own else "x" + text.hex(), "expect": "accept"}

    for name, ms in (("2026", 1767225600000), ("1970", 0), ("the last that 48 bits can say", 2**48 - 1)):
        yield one("ours: " + name, cka_id(ms, octets(name, 8)), ms)
    mark = b"\xee" * 4
    urgent = cka_id(1767225600000, mark + octets("random", 4))
    yield one("ours: an emergency key", urgent, 1767225600000, True)
    yield one("ours: an emergency key, the rest of the random part too", cka_id(1767225600000, mark * 2), 1767225600000, True)
    yield one("ours: no emergency key: a digit of the mark is another", cka_id(1767225600000, mark[:3] + b"\xef" + octets("random", 4)), 1767225600000)
    yield one("ours: no emergency key: the mark stands elsewhere", cka_id(1767225600000, octets("random", 4) + mark), 1767225600000)
    yield one("foreign: an emergency key with a digit of the checksum changed", urgent[:-1] + (b"0" if urgent[-1:] != b"0" else b"1"))
    good = cka_id(1767225600000, octets("random", 8))
    yield one("foreign: one digit of the time changed", good[:10] + (b"0" if good[10:11] != b"0" else b"1") + good[11:])
    yield one("foreign: one digit of the checksum changed", good[:-1] + (b"0" if good[-1:] != b"0" else b"1"))
    upper = good[:4] + b"019B00000C0A" + good[16:33]
    yield one("foreign: upper-case hex with its own checksum", upper + b"-" + checksum(upper))
    magic = b"hk2" + good[3:33]
    yield one("foreign: another magic with its own checksum", magic + b"-" + checksum(magic))
    yield one("foreign: one byte short", good[:-1])
    yield one("foreign: one byte more", good + b"0")
    yield one("foreign: empty", b"")
    yield one("foreign: one zero byte", b"\x00")
    yield one("foreign: the 16 ASCII bytes of tpm2_ptool", b"a1b2c3d4e5f60718")
    yield one("foreign: 64 bytes, the most", octets("id", 64))
    yield {"name": "65 bytes", "cka_id": octets("id", 65).hex(), "expect": "reject", "reason": "too long"}


def key_ids():
    fp = "0123456789abcdef"
    for name, ring, version in (
            ("ours", "kube-secrets", OWN), ("foreign", "kube-secrets", "x01"), ("foreign, empty CKA_ID", "r", "x"),
            ("longest", "a" * 63, "x" + octets("id", 64).hex()), ("every character of a ring", "abc.xyz-019", OWN)):
        k = {"name": name, "key_id": "/".join((ring, version, fp)), "hold": False, "ring": ring, "version": version, "fingerprint": fp, "expect": "accept"}
        yield k
        yield dict(k, name=name + ", in a hold", key_id=k["key_id"] + "/hold", hold=True)
    bad_sum = OWN[:-1] + ("0" if OWN[-1] != "0" else "1")
    for name, text in (
            ("empty", ""), ("two parts", "r/x01"), ("four parts", "r/x01/%s/" % fp), ("no ring", "/x01/" + fp),
            ("no version", "r//" + fp), ("no fingerprint", "r/x01/"), ("ring of 64", "a" * 64 + "/x01/" + fp),
            ("ring in capitals", "Ring/x01/" + fp), ("ring with underscore", "a_b/x01/" + fp),
            ("ring with a byte that is no character", "a\ufffd/x01/" + fp), ("space before", " r/x01/" + fp),
            ("newline after", "r/x01/%s\n" % fp), ("version of ours with a wrong checksum", "r/%s/%s" % (bad_sum, fp)),
            ("version of ours in hex", "r/x%s/%s" % (OWN.encode().hex(), fp)), ("foreign version in capitals", "r/xAB/" + fp),
            ("foreign version of half a byte", "r/x0/" + fp), ("foreign version without x", "r/01/" + fp),
            ("foreign version of 65 bytes", "r/x%s/%s" % ("00" * 65, fp)), ("fingerprint in capitals", "r/x01/0123456789ABCDEF"),
            ("fingerprint of 7 bytes", "r/x01/0123456789abcd"), ("fingerprint of 9 bytes", "r/x01/0123456789abcdef00"),
            ("fingerprint not hex", "r/x01/0123456789abcdeg"), ("257 bytes", "r/x01/" + fp + "0" * 235),
            ("hold alone", "/hold"), ("hold for a fingerprint", "r/x01/hold"), ("hold twice", "r/x01/%s/hold/hold" % fp),
            ("hold in capitals", "r/x01/%s/HOLD" % fp), ("slash after hold", "r/x01/%s/hold/" % fp), ("another word than hold", "r/x01/%s/held" % fp)):
        yield {"name": name, "key_id": text, "expect": "reject", "reason": "unknown key_id"}


def title(profile, size):
    return RINGS[profile] + {HSM_IV: ", nonce of %d" % size, HMAC_NONCE: ", random nonce"}.get(profile, "")


def accepted_envelopes():
    for profile, size in KINDS:
        for name, n, version in (("a DEK seed of 32 bytes", 32, OWN), ("one byte", 1, OWN), ("17 bytes", 17, OWN),
                                 ("512 bytes, the most", 512, OWN), ("a foreign key", 32, "x01"), ("a key of empty CKA_ID", 32, "x")):
            unique, dek, kid = octets(name + "/unique", size), octets(name + "/dek", n), key_id(profile, version=version)
            v = {"name": "%s: %s" % (title(profile, size), name), "profile": RINGS[profile], "key": KEY.hex(), "key_id": kid,
                 "unique": unique.hex(), "dek": dek.hex(), "associated": associated(profile, unique, kid).hex()}
            if profile in DERIVED:
                v["kdf_input"] = kdf_input(unique, profile).hex()
                v["one_time_key"] = mac(KEY, kdf_input(unique, profile)).hex()
            v["envelope"] = seal(profile, KEY, kid, unique, dek).hex()
            v["expect"] = "accept"
            yield v
            if profile not in DERIVED and n == 32 and version == OWN:
                ring = AES_GCM + HSM_IV - profile
                yield dict(v, name="%s, in a ring of %s" % (v["name"], NAMES[ring]), profile=NAMES[ring])


def rejected_envelopes():
    for profile, size in KINDS:
        kid, unique, dek = key_id(profile), octets("unique", size), octets("dek", 32)
        good, other = seal(profile, KEY, kid, unique, dek), {AES_GCM: HMAC_KDF, HMAC_KDF: AES_GCM, HSM_IV: AES_GCM, HMAC_NONCE: HMAC_KDF}[profile]
        aad, at = associated(profile, unique, kid), 3 if profile == HSM_IV else 2  # where the nonce or salt begins

        def reject(name, envelope, reason, kid=kid, profile=profile):
            return {"name": "%s: %s" % (title(profile, size), name), "profile": RINGS[profile], "key": KEY.hex(), "key_id": kid,
                    "envelope": envelope.hex(), "expect": "reject", "reason": reason}

        def flip(at):
            return good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]

        for name, envelope in (
                ("empty", b""), ("header only", good[:2]), ("cut in the nonce or salt", good[:at + size - 1]),
                ("cut before the ciphertext", good[:at + size]), ("tag only", good[:at + size] + good[-16:]),
                ("DEK of 513 bytes", seal(profile, KEY, kid, unique, octets("dek", 513))), ("1025 bytes", good + bytes(1025 - len(good))),
                ("format version 0", b"\x00" + good[1:]), ("format version 2", b"\x02" + good[1:]),
                ("profile 0", good[:1] + b"\x00" + good[2:]), ("made one of a hold", good[:1] + b"\x04" + good[2:]),
                ("profile 255", good[:1] + b"\xff" + good[2:])):
            yield reject(name, envelope, "malformed")
        if profile == HMAC_NONCE:
            yield reject("of profile aes-gcm", seal(AES_GCM, KEY, kid, octets("unique", NONCE), dek), "malformed")
            yield reject("the same as profile hmac-kdf", good[:1] + bytes([HMAC_KDF]) + good[2:], "unauthentic")
            inner = gcm(mac(KEY, kdf_input(unique, profile)), bytes(NONCE), aad, dek)
            yield reject("sealed under a nonce of zeros", good[:2 + size] + inner, "unauthentic")
            inner = gcm(mac(KEY, kdf_input(unique)), unique[SALT:], aad, dek)
            yield reject("one-time key of profile hmac-kdf", good[:2 + size] + inner, "unauthentic")
            inner = gcm(mac(KEY, KDF + header(profile) + unique), unique[SALT:], aad, dek)
            yield reject("one-time key derived from the nonce too", good[:2 + size] + inner, "unauthentic")
            long = ENVELOPE + header(profile) + unique + kid.encode()
            yield reject("associated data with the nonce", seal(profile, KEY, kid, unique, dek, long), "unauthentic")
        elif profile == HMAC_KDF:
            yield reject("of profile aes-gcm", seal(AES_GCM, KEY, kid, octets("unique", NONCE), dek), "malformed")
            yield reject("of profile aes-gcm-hsm-iv", seal(HSM_IV, KEY, kid, octets("unique", NONCE), dek), "malformed")
            inner = gcm(mac(KEY, kdf_input(unique)), octets("nonce", NONCE), aad, dek)
            yield reject("one-time key with another nonce than zero", good[:2 + size] + inner, "unauthentic")
            inner = gcm(mac(KEY, unique), bytes(NONCE), aad, dek)
            yield reject("one-time key derived from the salt alone", good[:2 + size] + inner, "unauthentic")
        else:
            yield reject("of profile hmac-kdf", seal(HMAC_KDF, KEY, kid, octets("unique", SALT), dek), "malformed")
            for name, reserved in (("the fingerprint's nonce", FINGERPRINT), ("a reserved nonce", RESERVED + bytes(4))):
                reserved = (reserved + b"\x00\x00\x00\x02")[:size]
                yield reject(name, seal(profile, KEY, kid, reserved, dek), "malformed")
        if profile == HSM_IV:
            yield reject("a nonce of zeros", seal(profile, KEY, kid, bytes(size), dek), "malformed")
            for n in (0, 11, 13, 15, 17, 28 - size, 255):
                what = "unauthentic" if n in (NONCE, LONG_NONCE) else "malformed"
                yield reject("length of the nonce %d" % n, good[:2] + bytes([n]) + good[3:], what)
            yield reject("nonce of 11 bytes", seal(profile, KEY, kid, octets("unique", 11), dek), "malformed")
            short = associated(HSM_IV, bytes(28 - size), kid)
            yield reject("associated data with the other length", seal(profile, KEY, kid, unique, dek, short), "unauthentic")
            long = ENVELOPE + header(profile) + bytes([size]) + unique + kid.encode()
            yield reject("associated data with the nonce", seal(profile, KEY, kid, unique, dek, long), "unauthentic")
            if size == NONCE:
                yield reject("the same as profile aes-gcm", bytes([1, AES_GCM]) + good[3:], "unauthentic")
        if profile == AES_GCM:
            yield reject("the same as profile aes-gcm-hsm-iv", bytes([1, HSM_IV, NONCE]) + good[2:], "unauthentic")
        for name, envelope in (
                ("cut by one byte", good[:-1]), ("one byte more", good + b"\x00"), ("tag of 12 bytes", good[:-4]),
                ("first bit of nonce or salt", flip(at)), ("last bit of nonce or salt", flip(at + size - 1)), ("ciphertext changed", flip(at + size)),
                ("tag changed", flip(len(good) - 1)), ("sealed under another key", seal(profile, OTHER_KEY, kid, unique, dek)),
                ("no associated data", seal(profile, KEY, kid, unique, dek, b"")),
                ("associated data without key_id", seal(profile, KEY, "", unique, dek)),
                ("associated data without domain", seal(profile, KEY, kid, unique, dek, aad[len(ENVELOPE):])),
                ("sealed as another profile", seal(profile, KEY, kid, unique, dek, associated(other, unique, kid)))):
            yield reject(name, envelope, "unauthentic")
        for name, asked in (("another ring", key_id(profile, ring="kube-secret")), ("another version", key_id(profile, version="x01")),
                            ("another fingerprint", key_id(profile, key=OTHER_KEY))):
            yield reject("opened as of " + name, good, "unauthentic", asked)


def hold_keys():
    for ring in NAMES:
        for name, key, day in (("1970-01-01", KEY, 0), ("2026-01-01", KEY, 20454), ("the day after", KEY, 20455),
                               ("the last day", KEY, LAST_DAY), ("a key of zeros", bytes(32), 20454)):
            yield {"name": "%s: %s" % (NAMES[ring], name), "profile": NAMES[ring], "key": key.hex(), "day": day,
                   "hold_key": hold_key(ring, key, day).hex(), "expect": "accept"}


def accepted_holds():
    for ring in NAMES:
        for name, n, day, version in (("a DEK seed of 32 bytes", 32, 20454, OWN), ("one byte", 1, 0, OWN),
                                      ("512 bytes, the most, on the last day", 512, LAST_DAY, OWN), ("a foreign key", 32, 1, "x01")):
            unique = day.to_bytes(DAY, "big") + octets(name + "/hold", SALT + NONCE)
            used, dek = key_id(ring, version=version) + "/hold", octets(name + "/dek", n)
            yield {"name": "hold, %s: %s" % (NAMES[ring], name), "profile": NAMES[ring], "key": KEY.hex(), "key_id": used,
                   "unique": unique.hex(), "dek": dek.hex(), "associated": hold_associated(unique, used).hex(),
                   "hold_key": hold_key(ring, KEY, day).hex(), "kdf_input": hold_kdf_input(unique).hex(),
                   "one_time_key": mac(hold_key(ring, KEY, day), hold_kdf_input(unique)).hex(),
                   "envelope": seal_hold(ring, KEY, used, unique, dek).hex(), "expect": "accept"}


def rejected_holds():
    for ring, size in ((AES_GCM, NONCE), (HMAC_KDF, SALT), (HSM_IV, NONCE)):
        kid, dek, day = key_id(ring), octets("dek", 32), (20454).to_bytes(DAY, "big")
        used, unique = kid + "/hold", day + octets("hold", SALT + NONCE)
        salt_end = DAY + SALT
        good, normal = seal_hold(ring, KEY, used, unique, dek), seal(ring, KEY, kid, octets("unique", size), dek)
        right = hold_key(ring, KEY, 20454)
        late = (LAST_DAY + 1).to_bytes(DAY, "big") + unique[DAY:]
        reserved = unique[:salt_end] + RESERVED + bytes(4)

        def sealed(aad=None, one_time=None, key=KEY, in_ring=ring):
            return seal_hold(in_ring, key, used, unique, dek, aad, one_time)

        for name, envelope, asked, reason in (
                ("as of the key itself", good, kid, "malformed"), ("a normal envelope as of a hold", normal, used, "malformed"),
                ("a normal envelope sealed for the text of a hold", seal(ring, KEY, used, octets("unique", size), dek), used, "malformed"),
                ("sealed for the text of the key", sealed(hold_associated(unique, kid)), used, "unauthentic"),
                ("the same, as of the key", sealed(hold_associated(unique, kid)), kid, "malformed"),
                ("day after the last", seal_hold(ring, KEY, used, late, dek), used, "malformed"),
                ("reserved nonce", seal_hold(ring, KEY, used, reserved, dek), used, "malformed"),
                ("header only", good[:2], used, "malformed"), ("half a day", good[:4], used, "malformed"),
                ("cut in the salt", good[:20], used, "malformed"), ("cut in the nonce", good[:40], used, "malformed"),
                ("tag only", good[:50] + good[-16:], used, "malformed"),
                ("DEK of 513 bytes", seal_hold(ring, KEY, used, unique, octets("dek", 513)), used, "malformed"),
                ("cut by one byte", good[:-1], used, "unauthentic"), ("one byte more", good + b"\x00", used, "unauthentic"),
                ("another day", good[:2] + (20455).to_bytes(DAY, "big") + good[6:], used, "unauthentic"),
                ("salt changed", good[:6] + bytes([good[6] ^ 1]) + good[7:], used, "unauthentic"),
                ("nonce changed", good[:49] + bytes([good[49] ^ 1]) + good[50:], used, "unauthentic"),
                ("ciphertext changed", good[:50] + bytes([good[50] ^ 1]) + good[51:], used, "unauthentic"),
                ("tag changed", good[:-1] + bytes([good[-1] ^ 1]), used, "unauthentic"),
                ("sealed under another key", sealed(key=OTHER_KEY), used, "unauthentic"),
                ("hold key of the other kind of ring", sealed(in_ring=AES_GCM + HMAC_KDF - ring if ring != HSM_IV else HMAC_KDF), used, "unauthentic"),
                ("hold key itself instead of a one-time key", sealed(one_time=right), used, "unauthentic"),
                ("one-time key derived from the KEK", sealed(one_time=mac(KEY, hold_kdf_input(unique))), used, "unauthentic"),
                ("one-time key without the day", sealed(one_time=mac(right, OUTAGE_KDF + header(HOLD) + unique[DAY:salt_end])), used, "unauthentic"),
                ("one-time key in the domain of hmac-kdf", sealed(one_time=mac(right, KDF + header(HOLD) + unique[:salt_end])), used, "unauthentic"),
                ("associated data with the nonce", sealed(ENVELOPE + header(HOLD) + unique + used.encode()), used, "unauthentic"),
                ("associated data without the day", sealed(ENVELOPE + header(HOLD) + unique[DAY:salt_end] + used.encode()), used, "unauthentic"),
                ("sealed under a nonce of zeros", good[:50] + gcm(mac(right, hold_kdf_input(unique)), bytes(NONCE), hold_associated(unique, used), dek), used, "unauthentic"),
                ("opened as of another ring", good, key_id(ring, ring="kube-secret") + "/hold", "unauthentic"),
                ("opened as of another version", good, key_id(ring, version="x01") + "/hold", "unauthentic"),
                ("opened as of another fingerprint", good, key_id(ring, key=OTHER_KEY) + "/hold", "unauthentic")):
            yield {"name": "hold, %s: %s" % (NAMES[ring], name), "profile": NAMES[ring], "key": KEY.hex(), "key_id": asked,
                   "envelope": envelope.hex(), "expect": "reject", "reason": reason}


def main():
    check_primitives()
    out = {
        "comment": "Made by vectors.py. FORMAT.md says what the fields mean. All bytes are in hex.",
        "fingerprints": list(fingerprints()),
        "ckaIDs": list(cka_ids()),
        "keyIDs": list(key_ids()),
        "holdKeys": list(hold_keys()),
        "envelopes": list(accepted_envelopes()) + list(accepted_holds()) + list(rejected_envelopes()) + list(rejected_holds()),
    }
    sys.stdout.buffer.write((json.dumps(out, indent=1, ensure_ascii=True) + "\n").encode())


main()
