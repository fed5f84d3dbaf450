"""From a form to llguidance's matcher. Imports nothing of capax: the helper process uses it too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

MAX_ERROR_CHARS = 300
_EXCERPT = re.compile(r" \d+ \| ")  # lines of the grammar, as the library shows them
# The same in every process, so that what one can compile the other can. At most a second of
# compiling and some 20 ms for a mask; 1 to 2 kB for each state.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 250_000,
    "verbose_errors": False,
}
# Space between the symbols of JSON: enough for lines and indentation, and no more, or a small
# model writes spaces until its tokens are used up.
JSON_SPACE = r"[ \t\n]{0,32}"
# Laid over what a schema's own `x-guidance` says: nothing that a schema demands is left out.
JSON_OPTIONS: JsonCompileOptions = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": JSON_SPACE,
}


def make_tokenizer(
    tokens: Sequence[bytes],
    special: Sequence[int],
    ends: Sequence[int],
    vocab_size: int,
    encode: Callable[[bytes], list[int]] | None = None,
) -> LLTokenizer:
    """Return llguidance's view of a vocabulary.

    `special` tokens match no text of a grammar; `ends` end an answer. Tokens from len(tokens)
    to vocab_size, where a model has more logits than its tokenizer has tokens, match nothing.
    `encode` splits text that a grammar forces as the model is used to; it may return [], and the
    longest tokens are taken then.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    class Vocabulary:
        """What TokenizerWrapper asks for."""

        def __init__(self) -> None:
            self.tokens = [*tokens, *(b"" for _ in range(vocab_size - len(tokens)))]
            self.special_token_ids = sorted({*special, *ends})
            self.eos_token_id = ends[0]
            self.bos_token_id = None

        def __call__(self, text: bytes) -> list[int]:
            return (encode(text) if encode else []) or _longest_tokens(text, by_bytes, longest)

    no_text = {*special, *ends}
    by_bytes = {t: i for i, t in enumerate(tokens) if t and i not in no_text}
    longest = max(map(len, by_bytes), default=0)

    return LLTokenizer(TokenizerWrapper(Vocabulary()), n_vocab=vocab_size, eos_token=list(ends))


def _longest_tokens(text: bytes, by_bytes: Mapping[bytes, int], longest: int) -> list[int]:
    """Split from the left, each time the longest token; bytes of no token are left out."""
    ids = []
    begin = 0
    while begin < len(text):
        for end in range(min(len(text), begin + longest), begin, -1):
            token = by_bytes.get(text[begin:end])
            if token is not None:
                ids.append(token)
                break
        begin = end
    return ids


def matcher_of(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """Compile a form; its first mask is computed. Raises ValueError if nothing satisfies it."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = _grammar(kind, text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, IndexError) as error:
        raise ValueError(_brief(str(error))) from None
    limits = LLParserLimits(**LIMITS)
    matcher = LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(_brief(matcher.get_error()))
    if matcher.is_stopped() and not matcher.is_accepting():
        raise ValueError("no text satisfies it")
    return matcher


def _grammar(kind: str, text: str) -> str:
    from llguidance import LLMatcher, grammar_from

    if kind == "json":
        return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
    if kind == "choice":
        choices = dict.fromkeys(json.loads(text))
        return LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        )
    return grammar_from("regex" if kind == "regex" else "gbnf" if "::=" in text else "lark", text)


def _brief(error: str) -> str:
    """One line of an error: what is wrong, without the grammar printed after it."""
    text = " ".join(error.replace("<non-verbose/>", " ").split())
    text = _EXCERPT.split(text)[0]
    return text[:MAX_ERROR_CHARS] or "it does not compile"
