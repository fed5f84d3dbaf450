"""From losses on names and values to bits of knowledge ("Physics of Language Models: Part 3.3").

Definition 4.3: with p1 the loss of a name and p2 that of a person's values, in nats, summed over
tokens and averaged over the N people,

    bits = N log2(N0 / e^p1) + N log2(S0 / e^p2)

is a lower bound on what the model holds. Nothing is clipped: a model that knows less than nothing
has negative bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capax.errors import ConfigError
from capax.measuring.knowledge.biographies import N0, S0

LOG2_N0, LOG2_S0 = math.log2(N0), math.log2(S0)
EMPIRICAL_LIMIT = 2.6  # bits per parameter; nobody has seen more
_SLACK = 1e-6


def max_bits(n: int) -> float:
    """Return the bits of a model that knows everything: N (log2(N0 / N) + log2 S0)."""
    return n * (math.log2(N0 / n) + LOG2_S0)


@dataclass(frozen=True)
class Bits:
    """What `n_people` are worth to a model of `n_parameters` that takes `nbytes`.

    `p1`, `p2`: nats, as above; `p2_first`: the loss of values each asked right behind the name, and
    `recall`: the share of attributes that the model gets right in those contexts, greedily.
    """

    n_people: int
    p1: float
    p2: float
    p2_first: float
    recall: float
    n_parameters: int
    nbytes: int

    def __post_init__(self) -> None:
        if self.p1 < math.log(self.n_people) - _SLACK or self.p2 < -_SLACK:
            raise ConfigError(
                f"p1 is {self.p1:.6f} and p2 {self.p2:.6f} nats, but {self.n_people} names after "
                f"one beginning cannot cost less than {math.log(self.n_people):.6f} on average, "
                "and values not less than 0: something else stood in the context"
            )

    @property
    def name_bits(self) -> float:
        return self.n_people * (LOG2_N0 - self.p1 / math.log(2))

    @property
    def value_bits(self) -> float:
        return self.n_people * (LOG2_S0 - self.p2 / math.log(2))

    @property
    def total(self) -> float:
        return self.name_bits + self.value_bits

    @property
    def per_parameter(self) -> float:
        return self.total / self.n_parameters

    @property
    def per_memory_bit(self) -> float:
        """Bits of knowledge for each bit of memory that the weights take."""
        return self.total / (8 * self.nbytes)

    @property
    def r_max(self) -> float:
        """Bits per parameter if everything were known."""
        return max_bits(self.n_people) / self.n_parameters

    @property
    def share_known(self) -> float:
        return self.total / max_bits(self.n_people)

    def to_json(self) -> dict[str, float | int]:
        """Return the figures."""
        return {
            "n_people": self.n_people,
            "n_parameters": self.n_parameters,
            "nbytes": self.nbytes,
            "p1": self.p1,
            "p2": self.p2,
            "p2_first": self.p2_first,
            "recall": self.recall,
            "name_bits": self.name_bits,
            "value_bits": self.value_bits,
            "bits": self.total,
            "bits_per_parameter": self.per_parameter,
            "bits_per_memory_bit": self.per_memory_bit,
            "r_max": self.r_max,
            "share_known": self.share_known,
        }


def parameters_for(bits: float, bits_per_parameter: float) -> int:
    """Return how many parameters hold so many bits, where each holds `bits_per_parameter`."""
    if bits <= 0 or bits_per_parameter <= 0:
        raise ConfigError(f"{bits:g} bits at {bits_per_parameter:g} per parameter are no plan")
    return math.ceil(bits / bits_per_parameter)
