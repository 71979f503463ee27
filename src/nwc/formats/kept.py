"""One hash over many tensors: all that a file holds, or those that no other checksum covers."""

from __future__ import annotations

import xxhash
from torch import Tensor

from nwc.formats.shards import raw_bytes


class KeptDigest:
    """XXH3-64 over the names and XXH3-64 of tensors, in order of their names.

    Example:
        >>> import torch
        >>> one, other = KeptDigest(), KeptDigest()
        >>> for digest, keys in ((one, "ab"), (other, "ba")):
        ...     for key in keys:
        ...         digest.add(key, torch.ones(2))
        >>> one.hexdigest() == other.hexdigest()
        True
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, key: str, value: Tensor | bytes | memoryview) -> None:
        """Take in a tensor, or bytes."""
        data = raw_bytes(value) if isinstance(value, Tensor) else value
        self._digests[key] = xxhash.xxh3_64_digest(data)

    def hexdigest(self) -> str:
        """The hash of what was taken in."""
        total = xxhash.xxh3_64()
        for key in sorted(self._digests):
            total.update(key.encode() + self._digests[key])
        return total.hexdigest()
