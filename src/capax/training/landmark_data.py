"""What the landmark model is trained on: prose, pass keys hidden in prose, and echoes.

Every document is a list of regular tokens; where landmarks stand between them is the affair of
`landmark_stream`. Text comes from one long row of token ids, cut anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from capax.errors import ConfigError

Encode = Callable[[str], list[int]]

END = "<|end|>"
LANDMARK = "<|landmark|>"


class Document(NamedTuple):
    """`weights`: what each token's prediction counts in the loss, [n_tokens]."""

    tokens: list[int]
    weights: list[float]


def train_tokenizer(texts: list[str], vocab_size: int) -> str:
    """Return the `tokenizer.json` of a byte-level BPE whose digits are tokens of their own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, LANDMARK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


class PassKeyPrompt(NamedTuple):
    """A question whose answer is `key` (token ids of its digits).

    `fact`: where the fact begins; `digits`: indices of the digits of its first mention.
    """

    tokens: list[int]
    key: list[int]
    fact: int
    digits: list[int]


# The prompt of the paper's code.
FACT = (" The pass key is", ". Remember it.", " is the pass key.")
QUESTION = " What is the pass key? The pass key is"
N_DIGITS = 5


class Documents:
    """Draws documents from `text`, one row of token ids."""

    def __init__(self, encode: Encode, text: list[int]) -> None:
        self._encode = encode
        self.text = text
        self.fact = tuple(self.encode(part) for part in FACT)
        self.question = self.encode(QUESTION)
        self._digits = [self.encode(str(digit))[0] for digit in range(10)]
        self._space = self.encode(" ")

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def filler(self, draw: random.Random, n: int) -> list[int]:
        """Return `n` tokens of the text from anywhere."""
        if n >= len(self.text):
            raise ConfigError(f"a filler of {n} tokens needs a text of more than {len(self.text)}")
        begin = draw.randrange(len(self.text) - n)
        return self.text[begin : begin + n]

    def key(self, draw: random.Random) -> list[int]:
        """Return the digits of a number of five digits."""
        number = draw.randrange(10 ** (N_DIGITS - 1), 10**N_DIGITS)
        return [self._digits[int(digit)] for digit in str(number)]

    def statement(self, key: list[int]) -> list[int]:
        """Return the fact: it says the key twice."""
        a, b, c = self.fact
        return [*a, *self._space, *key, *b, *self._space, *key, *c]

    def pass_key(self, draw: random.Random, n: int, *, n_questions: int, weight: float) -> Document:
        """Return `n` tokens: the fact somewhere, and questions with answers, the last at the end.

        Digits of answers, and of the fact's second mention, weigh `weight`.
        """
        key = self.key(draw)
        fact = self.statement(key)
        answer = [*self.question, *self._space, *key]
        n_questions = max(1, min(n_questions, (n - len(fact)) // (2 * len(answer))))
        room = n - len(fact) - n_questions * len(answer)
        cuts = sorted(draw.randrange(room + 1) for _ in range(n_questions))
        text = self.filler(draw, room)
        tokens = text[: cuts[0]] + fact
        weights = [1.0] * cuts[0] + [1.0] * len(fact)
        second = cuts[0] + len(fact) - len(self.fact[2]) - N_DIGITS
        weights[second : second + N_DIGITS] = [weight] * N_DIGITS
        for begin, end in zip(cuts, [*cuts[1:], room], strict=True):
            tokens += text[begin:end] + answer
            weights += [1.0] * (end - begin + len(answer) - N_DIGITS) + [weight] * N_DIGITS
        return Document(tokens, weights)

    def echo(self, draw: random.Random, n: int, *, weight: float) -> Document:
        """Return `n` tokens in which spans come back later; repeated tokens weigh `weight`."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < n:
            if len(tokens) > 16 and draw.random() < 0.5:
                length = draw.randrange(6, 24)
                begin = draw.randrange(max(1, len(tokens) - length))
                span = tokens[begin : begin + length]
                weights += [1.0, 1.0] + [weight] * (len(span) - 2)
            elif draw.random() < 0.5:
                span = [draw.choice(self.text) for _ in range(draw.randrange(6, 24))]
                weights += [0.0] * len(span)
            else:
                span = self.filler(draw, draw.randrange(6, 24))
                weights += [1.0] * len(span)
            tokens += span
        return Document(tokens[:n], weights[:n])

    def double(self, draw: random.Random, n: int) -> Document:
        """Return a string of random tokens twice; only the second time counts."""
        half = n - n // 2
        tokens = [draw.choice(self.text) for _ in range(half)]
        return Document((tokens + tokens)[:n], [0.0] * (half + 1) + [1.0] * (n - half - 1))

    def prose(self, draw: random.Random, n: int) -> Document:
        """Return `n` tokens of the text."""
        return Document(self.filler(draw, n), [1.0] * n)

    def prompt(self, draw: random.Random, n: int, *, outside: int = 0) -> PassKeyPrompt:
        """Return about `n` tokens that end in the question, the fact uniformly somewhere before.

        `outside`: the fact's end lies at least so many tokens before the end of the prompt.
        """
        key = self.key(draw)
        fact = self.statement(key)
        end = [*self.question, *self._space]
        room = n - len(fact) - len(end)
        last = min(room, n - len(fact) - outside)
        if last < 0:
            raise ConfigError(f"a prompt of {n} tokens has no room for its fact")
        at = draw.randrange(last + 1)
        text = self.filler(draw, room)
        first = at + len(self.fact[0]) + len(self._space)
        return PassKeyPrompt(
            text[:at] + fact + text[at:] + end,
            key,
            at,
            list(range(first, first + N_DIGITS)),
        )
