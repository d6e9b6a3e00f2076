"""API keys: who may ask, over HTTP and over gRPC."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from ...errors import InputError

__all__ = ["Keys"]


class Keys:
    """The keys of which a request has to bring one; with none of them everybody may ask.

    Raises:
        InputError: a key that no header can carry, or one string instead of several.
    """

    REFUSAL = "an API key is needed here: send it as Authorization: Bearer KEY"

    def __init__(self, keys: Iterable[str]) -> None:
        if isinstance(keys, str):  # of which each character would be a key
            raise InputError("API keys must be a list of strings, got one string: write [key]")
        keys = tuple(keys)
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise InputError("an API key must be printable ASCII characters without spaces, and at least one of them")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def fit(self, authorization: bytes | None) -> bool:
        """Whether this value of an Authorization header brings one of them, or none is needed."""
        if not self._digests:
            return True
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return False
        given = hashlib.sha256(authorization[7:].strip()).digest()
        # Every key is compared, and in whole, so that the time says nothing about them.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0
