"""The spelling of model names and digests; everything that becomes a path passes here."""

from __future__ import annotations

import re
from typing import NamedTuple

from capax.errors import ConfigError

_PART = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,3}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HUB_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_FILE = rf"{_HUB_PART}(?:/{_HUB_PART}){{0,7}}"
_HUB = re.compile(rf"(?P<owner>{_HUB_PART})/(?P<repo>{_HUB_PART})(?::(?P<file>{_HUB_FILE}))?")


class HubName(NamedTuple):
    """A repository on the Hugging Face hub and, if given, one file of it."""

    owner: str
    repo: str
    file: str | None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        return self.repo_id if self.file is None else f"{self.repo_id}:{self.file}"


def check_name(name: str) -> str:
    """Return `name` if a model in the registry may have it, else raise ConfigError."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{name!r} is not a model name: use lower-case letters, digits, '.', '_' and '-', at "
            "most 64 characters a part, parts joined by '/'"
        )
    return name


def check_digest(digest: object) -> str:
    """Return `digest` if it is a SHA-256 in lower-case hexadecimal, else raise ConfigError."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{digest!r} is not a SHA-256 digest of 64 hexadecimal digits")
    return digest


def parse_hub_name(text: str) -> HubName | None:
    """Return the parts of `owner/repo[:file]`, or None if `text` is spelled otherwise."""
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        return None
    return HubName(match["owner"], match["repo"], match["file"])
