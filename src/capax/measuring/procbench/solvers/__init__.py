"""One solver per task: reads the question's text alone, and shares nothing with the generators."""

from capax.measuring.procbench.solvers.solve import SOLVERS, solve

__all__ = ["SOLVERS", "solve"]
