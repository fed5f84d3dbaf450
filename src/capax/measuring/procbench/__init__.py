"""ProcBench: how many steps of a given procedure a model follows (2024, arXiv 2410.03117)."""

from capax.measuring.procbench.generators import generate
from capax.measuring.procbench.problem import TASKS, Problem, Task
from capax.measuring.procbench.solvers import solve

__all__ = ["TASKS", "Problem", "Task", "generate", "solve"]
