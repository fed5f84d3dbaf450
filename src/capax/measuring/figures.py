"""The figures each kind of measurement puts into its record."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capax.measuring.records import Figure, Peer

if TYPE_CHECKING:
    from capax.measuring.compression import Compressed
    from capax.measuring.idealized_runtime import Fit, Sample
    from capax.measuring.information_capacity import CapacityReport
    from capax.measuring.knowledge.bits import Bits
    from capax.measuring.kv_report import MethodReport
    from capax.measuring.perplexity import Tally
    from capax.measuring.procbench.report import Report

Z_95 = 1.959964
MAX_MODELS = 1000  # of a table that get a figure each


def perplexity_figures(tally: Tally, seconds: float) -> tuple[Figure, ...]:
    """Return what scoring windows gave. The interval takes tokens as independent."""
    half = Z_95 * tally.standard_error
    n = tally.n_tokens
    return (
        Figure(name="perplexity", value=tally.perplexity, n=n, higher_is_better=False,
               interval=(tally.perplexity - half, tally.perplexity + half) if n > 1 else None),
        _bits_per_byte(tally),
        Figure(name="scored_tokens_per_second", value=n / seconds, unit="token/s", n=n,
               higher_is_better=True, of_machine=True),
    )  # fmt: skip


def _bits_per_byte(tally: Tally) -> Figure:
    if not tally.n_bytes:
        return Figure(name="bits_per_byte", value=None, unit="bit/byte", note="no bytes")
    value, interval = tally.bits_per_byte, None
    if tally.n_tokens > 1:
        error = tally.standard_error / tally.perplexity  # of the mean NLL of a token, in nats
        half = Z_95 * error * tally.n_tokens / tally.n_bytes / math.log(2)
        interval = (value - half, value + half)
    return Figure(name="bits_per_byte", value=value, unit="bit/byte", interval=interval,
                  n=tally.n_tokens, higher_is_better=False)  # fmt: skip


def capacity_figures(report: CapacityReport) -> tuple[Figure, ...]:
    """Return information capacity and what it is made of."""
    n = report.n_tokens
    return (
        Figure(name="ic", value=report.ic, n=n, higher_is_better=True,
               note="" if report.ic is not None else "gain + bias is not positive"),
        Figure(name="bits_per_byte", value=report.bits_per_byte, unit="bit/byte", n=n,
               higher_is_better=False),
        Figure(name="nll", value=report.nll, unit="bit/token", interval=report.nll_interval, n=n,
               higher_is_better=False),
        Figure(name="text_size", value=report.text_size, unit="bit/token", n=n),
        Figure(name="flops_per_token", value=report.flops_per_token, unit="FLOP/token"),
    )  # fmt: skip


def compression_figures(data: bytes, result: Compressed, seconds: float) -> tuple[Figure, ...]:
    """Return the size reached, beside that of xz on the same bytes."""
    import lzma

    if not data:
        return (Figure(name="bits_per_byte", value=None, unit="bit/byte", note="no bytes"),)
    n, size = len(data), 8 * len(result.content) / len(data)
    xz = 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / n
    return (
        Figure(name="bits_per_byte", value=size, unit="bit/byte", n=n, higher_is_better=False,
               peer=Peer(name="xz -9e", value=xz)),
        Figure(name="predicted_bits_per_byte", value=result.predicted_bits / n, unit="bit/byte",
               n=n),
        Figure(name="bytes_per_second", value=n / seconds, unit="byte/s", higher_is_better=True,
               of_machine=True),
    )  # fmt: skip


def procbench_figures(report: Report) -> tuple[Figure, ...]:
    """Return the shares of right states, chains and ends."""
    row = report.overall
    shares = {
        "pa": (row.pa, row.pa_interval),
        "sm": (row.sm, row.sm_interval),
        "fm": (row.fm, row.fm_interval),
        "read": (row.read, None),
        "cut": (row.cut, None),
    }
    return (
        *(
            Figure(name=name, value=value, interval=interval, n=row.n, unit="share",
                   higher_is_better=name != "cut")
            for name, (value, interval) in shares.items()
        ),
        Figure(name="completion_tokens", value=float(report.completion_tokens), unit="token",
               higher_is_better=False),
        Figure(name="pa_per_1000_tokens", value=row.pa_per_1000_tokens, unit="1/1000 token",
               higher_is_better=True, note="" if report.completion_tokens else "no tokens"),
    )  # fmt: skip


def timing_figures(samples: Sequence[Sample]) -> tuple[Figure, ...]:
    """Return the median time of each cell of a grid; the interval is fastest to slowest."""
    times: dict[tuple[int, int], list[float]] = {}
    for s in samples:
        times.setdefault((s.p, s.o), []).append(s.seconds)
    return tuple(
        Figure(name=f"T({p},{o})", value=statistics.median(seconds), unit="s",
               interval=(min(seconds), max(seconds)), n=len(seconds), higher_is_better=False,
               of_machine=True, note="interval: fastest to slowest")
        for (p, o), seconds in sorted(times.items())
    )  # fmt: skip


def runtime_figures(result: Fit, rounds_differ: float | None) -> tuple[Figure, ...]:
    """Return the fitted profile, and how well it fits."""
    model = result.model
    values = {
        "beta": (model.beta, "s/token"),
        "kappa": (model.kappa, "s/token^2"),
        **{f"g({p})": (seconds, "s") for p, seconds in model.g.items()},
        "median_error": (result.median_error, "share"),
        "max_error": (result.max_error, "share"),
        "rounds_differ": (rounds_differ, "share"),
    }
    return tuple(
        Figure(name=name, value=value, unit=unit, higher_is_better=False, of_machine=True)
        for name, (value, unit) in values.items()
    )


def density_figures(
    models: Sequence[Mapping[str, Any]], trend: Mapping[str, Any] | None
) -> tuple[Figure, ...]:
    """Return the density of each model of a table and the growth of the best of them."""
    found = [
        Figure(
            name=f"density {model['model'] or number}",
            value=model["rho"],
            interval=_interval(model.get("interval")),
            higher_is_better=True,
            note=model["status"] if model["rho"] is None else "interval: 90 %",
        )
        for number, model in enumerate(models[:MAX_MODELS], 1)
    ]
    if trend is not None:
        found += [
            Figure(name="growth", value=trend["growth"], unit="1/day",
                   interval=_interval(trend["growth_interval"])),
            Figure(name="doubling_days", value=_finite(trend["doubling_days"]), unit="day",
                   higher_is_better=False),
        ]  # fmt: skip
    return tuple(found)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    if bounds is None or not all(map(math.isfinite, bounds)):
        return None
    low, high = bounds
    return low, high


def kv_figures(report: MethodReport) -> tuple[Figure, ...]:
    """Return what a KV method costs in quality and bytes, and how fast it decodes."""
    q = report.quality
    found = [
        Figure(name="kl", value=q.kl, unit="nat/token", n=q.n_tokens, higher_is_better=False,
               interval=q.kl_interval if q.n_chunks > 1 else None),
        Figure(name="perplexity", value=q.perplexity, n=q.n_tokens, higher_is_better=False),
        Figure(name="perplexity_ratio", value=q.perplexity_ratio, n=q.n_tokens,
               higher_is_better=False, note="to the float32 cache"),
        Figure(name="top1", value=q.top1, unit="share", n=q.n_tokens, higher_is_better=True),
        Figure(name="bytes_per_token", value=q.total_bytes_per_token, unit="byte/token",
               higher_is_better=False),
        Figure(name="kept_bytes_per_token", value=q.kept_bytes_per_token, unit="byte/token",
               higher_is_better=False, note="measured, without working memory"),
    ]  # fmt: skip
    for name, right in (("pass_key", report.passkey), ("multi_needle", report.multi_needle)):
        if right is not None:
            found.append(
                Figure(name=name, value=right.n_right / right.n_questions, unit="share",
                       n=right.n_questions, higher_is_better=True)
            )  # fmt: skip
    for depth, speed in report.speeds.items():
        found.append(
            Figure(name=f"tg @ d{depth}", value=speed.median, unit="token/s", n=speed.n_bursts,
                   higher_is_better=True, of_machine=True)
        )  # fmt: skip
    return tuple(found)


def knowledge_figures(bits: Bits) -> tuple[Figure, ...]:
    """Return the bits of facts that a model holds."""
    n = bits.n_people
    return (
        Figure(name="bits_per_parameter", value=bits.per_parameter, unit="bit/parameter", n=n,
               higher_is_better=True),
        Figure(name="bits_per_memory_bit", value=bits.per_memory_bit, n=n, higher_is_better=True),
        Figure(name="bits", value=bits.total, unit="bit", n=n, higher_is_better=True),
        Figure(name="share_known", value=bits.share_known, unit="share", n=n,
               higher_is_better=True),
        Figure(name="recall", value=bits.recall, unit="share", n=n, higher_is_better=True),
    )  # fmt: skip


def speed_figures(speeds: Mapping[str, Sequence[float]]) -> tuple[Figure, ...]:
    """Return median tokens per second of each test (pp512, tg128 @ d4096)."""
    return tuple(
        Figure(name=name, value=statistics.median(values), unit="token/s", n=len(values),
               interval=(min(values), max(values)), higher_is_better=True, of_machine=True,
               note="interval: slowest to fastest")
        for name, values in speeds.items()
    )  # fmt: skip


def load_figures(result: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Return what the clients of a server saw: every number of the result."""
    lower = ("failed", "_ms", "duration", "errors")
    return tuple(
        Figure(name=name, value=float(value), unit="ms" if name.endswith("_ms") else "",
               n=result.get("completed"), of_machine=True,
               higher_is_better=not any(part in name for part in lower))
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )  # fmt: skip
