"""`capax scale tasks`: generated tasks with exact truth and a difficulty knob."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "tasks",
    table={
        "list": ("tasks_list", "List the families of tasks."),
        "generate": ("tasks_generate", "Write tasks of a family to a file."),
        "sequential": ("tasks_sequential", "Answer again after feedback, beside parallel calls."),
        "gap": ("tasks_gap", "Set models that reason against the best of those that do not."),
        "report": ("tasks_report", "Show bounds, votes, tokens and difficulty of a run of them."),
    },
    help="Generated tasks with exact truth and a difficulty knob.",
)
