"""Problems without end: the truth is made with the question, never by a solver."""

from capax.measuring.procbench.generators.generate import GENERATORS, generate

__all__ = ["GENERATORS", "generate"]
