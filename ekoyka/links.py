"""Short-lived signed addresses of files: ``/<kind>/<subject>-<expiry>-<mac>.<suffix>``.

The mac is HMAC-SHA-256 (RFC 2104) over subject and expiry. PostgreSQL computes it where the graph gives the
address, so that a list of certificates stays one statement; the server checks it where the file is asked
for. The key is derived from a token key for this purpose alone and is good for nothing else. A subject says
what kind of file it is about: a certificate's is its number, an appointment's begins with ``a``, a doctor's
day's with ``d``.
"""

import hmac
import re
import time
from collections.abc import Sequence
from functools import cache

_BLOCK = 64
_NAME = re.compile(r"([ad]?\d{1,19}(?:\.\d{8})?)-(\d{1,12})-([0-9a-f]{64})")


def derive(key: str) -> bytes:
    """The key of signed addresses that belongs to a token key."""
    return hmac.digest(key.encode(), b"download", "sha256")


@cache
def pads(key: bytes) -> tuple[bytes, bytes]:
    """The inner and outer pad of HMAC, which is all of the key that PostgreSQL is told."""
    block = key.ljust(_BLOCK, b"\x00")
    return bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block)


def name_sql(subject: str, ttl_s: str, inner: str, outer: str) -> str:
    """SQL of the signed name of a file, given SQL of its subject, the life and both pads."""
    return (
        f"(SELECT n.text || '-' || encode(sha256({outer} || sha256({inner} || convert_to(n.text, 'UTF8'))), 'hex')"
        f" FROM (SELECT {subject} || '-' || (extract(epoch FROM now())::bigint + {ttl_s}) AS text) n)"
    )


def name(key: bytes, subject: str, expires: int) -> str:
    """As `name_sql`, in Python."""
    text = f"{subject}-{expires}"
    return f"{text}-{hmac.digest(key, text.encode(), 'sha256').hex()}"


def read(keys: Sequence[bytes], signed: str) -> str | None:
    """The subject that the name gives access to now; None for a forged or lapsed one."""
    match = _NAME.fullmatch(signed)
    if match is None or int(match[2]) < time.time():
        return None
    good = any(
        hmac.compare_digest(name(key, match[1], int(match[2])).encode(), signed.encode()) for key in keys
    )
    return match[1] if good else None
