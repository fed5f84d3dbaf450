"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from capax.errors import CapaxError

# The same examples in every run: a failure is a change, not chance.
hypothesis.settings.register_profile("capax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("capax")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct file: CAPAX_TEST_MODEL, or what the registry has."""
    from capax.files.registry import resolve

    name = os.environ.get("CAPAX_TEST_MODEL", "smollm2-135m")
    try:
        path = resolve(name)
    except CapaxError as error:
        pytest.skip(f"needs the real model, run 'capax pull smollm2-135m' first ({error})")
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 directory: CAPAX_TEST_EMBEDDING_MODEL, or the registry's."""
    from capax.files.registry import resolve

    name = os.environ.get("CAPAX_TEST_EMBEDDING_MODEL", "all-minilm-l6-v2")
    try:
        path = resolve(name)
    except CapaxError as error:
        pytest.skip(f"needs the real model, run 'capax pull all-minilm-l6-v2' first ({error})")
    return path
