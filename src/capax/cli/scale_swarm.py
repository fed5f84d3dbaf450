"""`capax scale swarm`: consensus of several models."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "swarm",
    table={
        "ask": ("swarm_ask", "Answer a question by the consensus of several models."),
        "admit": ("swarm_admit", "Let models earn the right to judge."),
        "calibrate": ("swarm_calibrate", "Let models earn their weight on questions with answers."),
        "bench": ("swarm_bench", "Compare consensus with votes on the same answers."),
        "show": ("swarm_show", "Check a registry and show what each judge's word weighs."),
    },
    help="Let models answer, compare the answers, and choose the strongest.",
)
