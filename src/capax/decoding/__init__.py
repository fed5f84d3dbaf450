"""How the next tokens are chosen."""

from capax.decoding.params import SamplingParams
from capax.decoding.sampling import Sampled, Sampler, Scored, sampled_of, score_rows
from capax.decoding.structured import StructuredOutputs

__all__ = [
    "Sampled",
    "Sampler",
    "SamplingParams",
    "Scored",
    "StructuredOutputs",
    "sampled_of",
    "score_rows",
]
