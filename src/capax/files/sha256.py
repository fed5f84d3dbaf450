"""SHA-256 without OpenSSL, for what is short.

`hashlib` loads OpenSSL, 3.4 MiB of a process that may need no other part of it. The same function
is built into the interpreter, which is where the standard library's `random` takes its own from.
Whole files are better read by `hashlib`: OpenSSL's is several times as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256
    except ImportError:
        try:  # Python 3.11
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256

__all__ = ["sha256"]
