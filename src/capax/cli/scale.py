"""`capax scale`: spend tokens so that they buy correct answers."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "scale",
    table={
        "sample": ("scale_sample", "Draw many answers to each task of a file, and check them."),
        "verify": ("scale_verify", "Check the samples of a run again, by another checker."),
        "limits": ("scale_limits", "Say what an imperfect check makes of more samples."),
        "tasks": ("scale_tasks", "Generate tasks with exact truth, and report runs of them."),
        "report": ("scale_report", "Write results.json, a page and a picture of a run."),
        "coverage": ("scale_coverage", "Show what k samples solve, and forecast larger k."),
        "rounds": ("scale_rounds", "Let a model reconsider its answers, round by round."),
        "plan": ("scale_plan", "Say how many samples or rounds are worth buying."),
        "swarm": ("scale_swarm", "Choose answers by the consensus of several models."),
        "markers": ("scale_markers", "Compare lengths and words of right and wrong samples."),
        "select": ("scale_select", "Show what votes over the samples of a run get right."),
        "compare": ("scale_compare", "Compare strategies by what their tokens buy."),
    },
    help="Spend a budget of tokens so that it buys correct answers.",
)
