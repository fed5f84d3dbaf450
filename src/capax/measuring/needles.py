"""Facts planted in long prose, and whether a model still finds them: pass key and many needles.

A haystack is running prose of a given number of tokens with one or more needles between its
sentences, at stratified depths: of n prompts, prompt i has its pass key at (i + 1/2) / n of the
text. Each question is asked of its own copy of the read text and answered greedily; an answer
counts only if the first number in it is the needle's, all digits of it and no more. Everything
follows from the seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from capax.engine.llm import LLM
from capax.engine.method_contexts import MethodContexts
from capax.errors import ConfigError
from capax.files.tokenizer import Tokenizer

N_DIGITS = 5
MAX_ANSWER_TOKENS = 10
QUESTION_ROOM = 48  # tokens of a question and its answer
LEAST_TOKENS = 128

_CITIES = (
    "Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Quebec", "Tunis", "Perth", "Riga", "Bogota",
    "Osaka", "Dublin", "Dakar", "Zagreb", "Havana", "Tbilisi",
)  # fmt: skip
_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+[\"')\]]*|[^.!?\n]+")


_Needle = tuple[str, str, str]  # its sentence, the question, the digits
_Maker = Callable[[str], _Needle]  # from digits


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence whose end is missing, the digits that end it, and where they stand (0 .. 1)."""

    text: str
    digits: str
    depth: float


@dataclass(frozen=True, slots=True)
class Haystack:
    """Token ids of prose with needles, and what is asked about it."""

    ids: list[int]
    questions: tuple[Question, ...]


def passkeys(
    tokenizer: Tokenizer, n_tokens: int, n: int, *, text: str | None = None, seed: int = 0
) -> list[Haystack]:
    """Return `n` haystacks of at most `n_tokens`, each with one pass key, at stratified depths.

    `text`: prose to hide it in, elsewhere in the text for each; None: prose made here. Raises
    ConfigError for one too short.
    """
    hay = _Hay(tokenizer, text, n_tokens, seed)
    return [hay.stack([_pass_key], [(i + 0.5) / n], i) for i in range(n)]


def multi_needles(
    tokenizer: Tokenizer,
    n_tokens: int,
    n: int,
    *,
    n_needles: int = 4,
    text: str | None = None,
    seed: int = 0,
) -> list[Haystack]:
    """Return `n` haystacks with the magic numbers of `n_needles` cities, one in each stratum.

    All of them are asked for, so that every needle has the others as distractors.
    """
    if not 1 <= n_needles <= len(_CITIES):
        raise ConfigError(f"{n_needles} needles are wanted; there are 1 to {len(_CITIES)}")
    hay = _Hay(tokenizer, text, n_tokens, seed + 1)
    stacks = []
    for i in range(n):
        depths = [(j + (i + 0.5) / n) / n_needles for j in range(n_needles)]
        cities = random.Random(f"cities {seed} {i}").sample(_CITIES, n_needles)
        stacks.append(hay.stack([partial(_magic_number, city) for city in cities], depths, i))
    return stacks


def answers(llm: LLM, method: str, haystack: Haystack) -> list[str]:
    """Return what a model says to each question when it reads the haystack by a KV method."""
    with llm.contexts_by([method], len(haystack.ids) + QUESTION_ROOM) as contexts:
        return answers_in(llm, contexts, 0, haystack)


def answers_in(llm: LLM, contexts: MethodContexts, index: int, haystack: Haystack) -> list[str]:
    """Read a haystack into an empty context and return the answer to each question."""
    step = llm.plan.prefill_chunk
    for begin in range(0, len(haystack.ids), step):
        contexts.advance([(index, haystack.ids[begin : begin + step])])
    return [_answer(llm, contexts, index, q.text) for q in haystack.questions]


def _answer(llm: LLM, contexts: MethodContexts, index: int, question: str) -> str:
    """Return the greedy continuation of a question, as far as it can matter."""
    new = llm.tokenizer.encode(question, add_special=False)
    said: list[int] = []
    with contexts.branch(index) as branch:
        for _ in range(MAX_ANSWER_TOKENS):
            new = [int(branch.extend([(0, new)])[0].argmax())]
            if new[0] in llm.tokenizer.eos_ids:
                break
            said += new
            text = llm.tokenizer.decode(said, at_start=False)
            if re.search(r"\d\D", text):
                break
    return llm.tokenizer.decode(said, at_start=False)


def is_right(answer: str, digits: str) -> bool:
    """Whether the first number of an answer is `digits`, all of them and no more."""
    found = re.search(r"\d+", answer)
    return found is not None and found[0] == digits


def n_right(haystack: Haystack, said: Sequence[str]) -> int:
    """Return how many questions are answered right."""
    return sum(is_right(a, q.digits) for a, q in zip(said, haystack.questions, strict=True))


class _Hay:
    """Sentences to hide needles between."""

    def __init__(self, tokenizer: Tokenizer, text: str | None, n_tokens: int, seed: int) -> None:
        if n_tokens < LEAST_TOKENS:
            raise ConfigError(
                f"a haystack of {n_tokens} tokens hides nothing; use {LEAST_TOKENS} or more"
            )
        self._tokenizer = tokenizer
        self._n_tokens = n_tokens
        self._seed = seed
        self._text = text
        self._sentences = [] if text is None else sentences_of(text)
        self._sizes = [self._size(s) for s in self._sentences]
        if text is not None and sum(self._sizes) < n_tokens:
            raise ConfigError(
                f"the text has {sum(self._sizes):,} tokens of prose, too few for a haystack of "
                f"{n_tokens:,}; give a longer text or a smaller --context"
            )

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(" " + text, add_special=False))

    def stack(self, makers: Sequence[_Maker], depths: Sequence[float], number: int) -> Haystack:
        rng = random.Random(f"needles {self._seed} {number}")
        taken: set[str] = set()
        needles = [make(self._digits(rng, taken)) for make in makers]
        room = self._n_tokens - sum(self._size(needle) for needle, _, _ in needles) - 2
        sentences, sizes = self._filler(rng, room)
        total = sum(sizes)
        parts: list[str] = []
        waiting = sorted(zip(depths, needles, strict=True), key=lambda x: x[0], reverse=True)
        read = 0
        for sentence, size in zip(sentences, sizes, strict=True):
            while waiting and read >= waiting[-1][0] * total:
                parts.append(waiting.pop()[1][0])
            parts.append(sentence)
            read += size
        parts += [needle[0] for _, needle in reversed(waiting)]
        ids = self._tokenizer.encode(" ".join(parts), add_special=False)
        if self._tokenizer.add_bos and self._tokenizer.bos_id is not None:
            ids = [self._tokenizer.bos_id, *ids]
        questions = tuple(
            Question(question, digits, depth)
            for depth, (_, question, digits) in zip(depths, needles, strict=True)
        )
        return Haystack(ids[: self._n_tokens], questions)

    def _digits(self, rng: random.Random, taken: set[str]) -> str:
        """Return a number that stands nowhere else in the text."""
        while True:
            digits = str(rng.randrange(10 ** (N_DIGITS - 1), 10**N_DIGITS))
            if digits not in taken and digits not in (self._text or ""):
                taken.add(digits)
                return digits

    def _filler(self, rng: random.Random, room: int) -> tuple[list[str], list[int]]:
        """Return consecutive sentences that fill `room` tokens, from a random one on."""
        n = len(self._sentences)
        at = rng.randrange(n) if n else 0
        sentences: list[str] = []
        sizes: list[int] = []
        total = 0
        while True:
            if n:
                sentence, size = self._sentences[at % n], self._sizes[at % n]
            else:
                sentence = made_sentence(rng)
                size = self._size(sentence)
            if total + size > room:
                return sentences, sizes
            sentences.append(sentence)
            sizes.append(size)
            total += size
            at += 1


def _pass_key(digits: str) -> _Needle:
    needle = f"The pass key is {digits}. Remember it. {digits} is the pass key."
    return needle, "\nThe pass key is", digits


def _magic_number(city: str, digits: str) -> _Needle:
    stem = f"The magic number for {city} is"
    return f"{stem} {digits}.", f"\n{stem}", digits


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, headings and empty lines left out."""
    found = []
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(("=", "#")):
            found += [s.strip() for s in _SENTENCE.findall(line) if len(s.strip()) > 2]
    return found


_WHO = (
    "the gardener", "a clerk from the harbour", "our neighbour", "the old teacher", "a young baker",
    "the night watchman", "her sister", "a travelling musician", "the miller", "the librarian",
)  # fmt: skip
_DID = (
    "walked along the river", "wrote a long letter", "counted the boats", "mended the fence",
    "waited for the train", "read by the window", "carried water up the hill", "told a story",
    "looked for the lost key ring", "planted two rows of beans",
)  # fmt: skip
_WHEN = (
    "before the rain began", "after supper", "while the market was still open", "every second week",
    "as the fog lifted", "when nobody was looking", "until the lamps were lit", "in early spring",
)  # fmt: skip
_THEN = (
    "and said nothing about it", "and came home late", "although it was cold",
    "because the road was closed", "and nobody minded", "which surprised the children",
    "as people there have always done", "and slept well that night",
)  # fmt: skip


def made_sentence(rng: random.Random) -> str:
    """Return a plain sentence without numbers."""
    who, did, when, then = (rng.choice(words) for words in (_WHO, _DID, _WHEN, _THEN))
    order = rng.randrange(3)
    if order == 0:
        return f"{who.capitalize()} {did} {when}."
    if order == 1:
        return f"{when.capitalize()}, {who} {did} {then}."
    return f"{who.capitalize()} {did} {when}, {then}."
