"""Answers of a given form: before each token, which tokens may come next (llguidance).

A form is compiled once for a tokenizer, and refused if that fails: there is no answer without
its constraint. Grammars are hostile input, and the library that compiles them is native code:
a helper process compiles each one first, and may crash, run out of memory or be killed after
two seconds. What it survives is compiled here within the same fixed limits, on the same
vocabulary, so the second time ends as the first did.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from capax.decoding.constraint_grammar import make_tokenizer, matcher_of
from capax.decoding.structured import Form, StructuredOutputs
from capax.errors import CapaxError, ConfigError
from capax.files.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from capax.decoding.constraint_helper import ConstraintHelper, Words

Mask = npt.NDArray[np.uint32]  # bit t % 32 of word t // 32: token t may come next

KEPT_NBYTES = 64 << 20
# Measured 2026-11: objects of 2,000 properties took 400 bytes for each byte of the schema.
NBYTES_PER_CHAR = 512
FIXED_NBYTES = 16 << 10
_NAMES = {"json": "JSON schema", "choice": "list of choices", "lark": "schema of the tools"}


class Constraint(Protocol):
    """What one choice may say, token by token."""

    def mask(self) -> Mask | None:
        """Which tokens may come next, [ceil(vocab_size / 32)] uint32; None: any."""
        ...

    def accept(self, token: int) -> bool:
        """Take the next token; returns whether the answer is complete with it."""
        ...


ConstraintFactory = Callable[[], Constraint]  # one constraint for each choice


class GrammarConstraint:
    """The state of one answer in a compiled grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self) -> Mask | None:
        """Which tokens may come next. Raises CapaxError if the grammar exceeds its limits."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        # In an error the library allows the end of the answer, which would look like a good one.
        self._check()
        return words

    def accept(self, token: int) -> bool:
        """Take the next token. Raises CapaxError if the mask did not allow it."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = " ".join(self._matcher.get_error().split())
            raise CapaxError(f"the answer cannot go on in its grammar: {error:.200}")


class ConstraintCompiler:
    """Compiles forms for one tokenizer; keeps the last ones. Safe to use from several threads.

    `vocab_size`: of the model, whose logits may have more rows than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # guards what follows, and lets one form compile at a time
        self._words: Words | None = None
        self._native: LLTokenizer | None = None
        self._helper: ConstraintHelper | None = None
        self._kept: OrderedDict[Form, LLMatcher] = OrderedDict()
        self._kept_nbytes = 0

    def compile(self, form: StructuredOutputs | Form) -> ConstraintFactory:
        """Return what makes the constraint of each choice.

        Raises ConfigError for a form that does not compile, within its limits of size and time,
        or if llguidance is not installed.
        """
        if isinstance(form, StructuredOutputs):
            form = form.form()
        with self._lock:
            matcher = self._kept.get(form)
            if matcher is None:
                matcher = self._compiled(form)
                self._keep(form, matcher)
            self._kept.move_to_end(form)
        return lambda: GrammarConstraint(matcher.deep_copy())

    def close(self) -> None:
        """End the helper process and forget every grammar."""
        with self._lock:
            helper, self._helper = self._helper, None
            self._kept.clear()
            self._kept_nbytes = 0
        if helper is not None:
            helper.close()

    def _compiled(self, form: Form) -> LLMatcher:
        self._prepare()
        assert self._helper is not None
        assert self._native is not None
        what = _NAMES.get(form.kind, form.kind)
        error = self._helper.try_grammar(form.kind, form.text)
        if error:
            raise ConfigError(f"the {what} cannot be used: {error}")
        try:
            return matcher_of(self._native, form.kind, form.text)
        except ValueError as refusal:
            raise ConfigError(f"the {what} cannot be used: {refusal}") from None

    def _prepare(self) -> None:
        if self._native is not None and self._helper is not None:
            return
        if find_spec("llguidance") is None:
            raise ConfigError(
                "structured outputs need the package llguidance, which is not installed; "
                "run 'pip install capax[serve]'"
            )
        # Not before it is needed: a server without structured outputs starts faster.
        from capax.decoding.constraint_helper import ConstraintHelper, Words

        tokenizer = self._tokenizer
        if not tokenizer.eos_ids:
            raise ConfigError(
                "structured outputs need a token that ends an answer, and the model's tokenizer "
                "names none"
            )
        if self._words is None:
            self._words = Words(
                [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)],
                sorted(tokenizer.special_ids),
                sorted(tokenizer.eos_ids),
                max(self._vocab_size, tokenizer.vocab_size),
            )
        self._helper = self._helper or ConstraintHelper(self._words)
        self._native = self._native or make_tokenizer(*self._words, self._encode)

    def _encode(self, text: bytes) -> list[int]:
        """Split forced text as the model's tokenizer does; [] if its tokens do not add up to it."""
        try:
            ids = self._tokenizer.encode(text.decode(), add_special=False)
        except UnicodeDecodeError:
            return []
        return ids if b"".join(map(self._tokenizer.token_bytes, ids)) == text else []

    def _keep(self, form: Form, matcher: LLMatcher) -> None:
        self._kept[form] = matcher
        self._kept_nbytes += _nbytes(form)
        while self._kept_nbytes > KEPT_NBYTES:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_nbytes -= _nbytes(oldest)


def _nbytes(form: Form) -> int:
    return FIXED_NBYTES + NBYTES_PER_CHAR * len(form.text)
