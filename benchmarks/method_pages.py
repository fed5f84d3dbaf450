"""Put measured tables of single methods into their pages, from the JSON in benchmarks/results.

    python -m benchmarks.method_pages --results benchmarks/results --docs docs

A page is changed between its markers `<!-- NAME:begin -->` and `<!-- NAME:end -->` only, and only
if there is a result; pictures are copied beside the others of the docs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import QUIET, insert


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table, all columns but the first to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def xl3m(result: dict[str, Any]) -> str:
    """Share of prompts answered by who selects, with 95 % intervals."""
    selectors = ["oracle", "both", "question_nll", "entropy", "bm25", "random", "head_tail"]
    kinds = {
        "12 segments: pass_key": "pass key, 12 segments",
        "12 segments: city": "magic number",
        "12 segments: cities": "magic number among other cities",
        "12 segments: other_words": "asked in other words",
        "32 K: all": "32 K tokens",
        "128 K: all": "128 K tokens",
    }

    def rows() -> Iterator[list[str]]:
        for name, label in kinds.items():
            group = result["summary"].get(name)
            if group is None:
                continue
            rates = [group["answered"][s] for s in selectors]
            cells = [f"{r['rate']:.0%}" for r in rates]
            low, high = rates[1]["interval"]
            cells[1] += f" ({low:.0%}–{high:.0%})"
            area = group["auroc_within_questions"]
            yield [f"{label} ({rates[0]['n']})", *cells, f"{area:.2f}"]

    head = ["prompts", *(s.replace("_", " ") for s in selectors), "AUROC of −entropy"]
    text = table(["answered exactly" if i == 0 else h for i, h in enumerate(head)], rows())
    hits = result["summary"]["12 segments: all"]["hit"]
    text += (
        f"\n\nOf all prompts with 12 segments the needle's was among the three kept in "
        f"{hits['both']['rate']:.0%} by `both`, {hits['entropy']['rate']:.0%} by `entropy`, "
        f"{hits['bm25']['rate']:.0%} by BM25 and {hits['random']['rate']:.0%} at random."
    )
    return text + "\n\n![Prompts answered by selector and length](images/xl3m.png)"


def knowledge(result: dict[str, Any]) -> str:
    """What was known, per parameter, and what encodings lose."""

    def rows() -> Iterator[list[str]]:
        for row in result["rows"]:
            recipe, best = row["recipe"], row["encodings"]["F32"]
            losses = [
                f"{1 - row['encodings'][e]['bits'] / best['bits']:.1%}"
                for e in ("Q8_0", "Q5_0", "Q4_1", "Q4_0")
            ]
            extra = "" if recipe["junk"] == "none" else f", {recipe['junk']} junk"
            extra += ", tagged" if recipe["tag"] else ""
            extra += f", seed {recipe['seed']}" if recipe["seed"] else ""
            yield [
                f"{recipe['people']:,} × {recipe['exposures']}{extra}",
                f"{row['n_parameters'] / 1e3:.0f} K",
                f"{best['bits_per_parameter']:.3f}",
                f"{best['share_known']:.1%}",
                f"{best['recall']:.0%}",
                *losses,
            ]

    head = ["people × exposures", "parameters", "bits per parameter", "known", "recall"]
    text = table([*head, "lost in Q8_0", "Q5_0", "Q4_1", "Q4_0"], rows())
    return text + "\n\n![Bits known, and lost by encodings](images/knowledge.png)"


def random_strings(result: dict[str, Any]) -> str:
    """What was stored of strings that cannot be guessed."""

    def rows() -> Iterator[list[str]]:
        for row in result["rows"]:
            yield [
                f"{row['strings']:,}",
                f"{row['n_parameters'] / 1e3:.1f} K",
                f"{row['exposures']:.0f}",
                f"{row['bits_there_are'] / row['n_parameters']:.2f}",
                f"{row['bits_per_parameter']:.2f}",
                f"{row['bits'] / row['n_parameters_without_embedding']:.2f}",
                f"{row['bits'] / row['bits_there_are']:.1%}",
                f"{row['gain_of_last_1000_steps']:.1%}",
            ]

    head = ["strings", "parameters", "exposures", "bits per parameter there are", "stored"]
    head += ["stored, without embedding", "share", "gain of the last 1,000 steps"]
    text = table(head, rows())
    return text + "\n\n![Bits of random strings stored](images/random_strings.png)"


def million(result: dict[str, Any]) -> str:
    """Losses of product codes and of plain codes of as many bits, on texts of two domains."""
    texts = list(result["losses"])
    by = {t: {r["method"]: r for r in result["losses"][t]} for t in texts}

    def rows() -> Iterator[list[str]]:
        for method in by[texts[0]]:
            cells = []
            for t in texts:
                row = by[t][method]
                cells += [f"{row['kl']:.4f}", f"{row['perplexity']:.2f}"]
            yield [f"`{method}`", *cells]

    head = ["method"]
    for t in texts:
        head += [f"KL, {t}", f"perplexity, {t}"]
    text = table(head, rows())
    if result["speeds"]:
        text += "\n\n" + table(
            ["at depth 8,192", "ms per token, median", "prefill, s", "MiB, all counted"],
            (
                [
                    row["method"],
                    f"{row['decode_ms_median']:.2f}",
                    f"{row['prefill_s']:.1f}",
                    f"{row['nbytes'] / 2**20:.1f}",
                ]
                for row in result["speeds"]
            ),
        )
    return text + "\n\n![Loss by bits, time by bytes](images/million.png)"


def xquant(result: dict[str, Any]) -> str:
    """Loss and bytes of every mode beside plain codes, and the method's statements."""

    def rows() -> Iterator[list[str]]:
        for row in result["quality"]:
            yield [
                row["name"] + (", causal" if row["is_causal"] else ""),
                f"{row['stored_bytes']:,.0f}",
                f"{row['live_bytes']:,.0f}",
                f"{row['kl']:.5f}",
                f"{row['perplexity']:.2f}",
            ]

    def statements() -> Iterator[list[str]]:
        for row in result["statements"]:
            yield [row["statement"], f"{row['measured']:.4f}", f"{row['at_most']:.3f}"]

    head = ["method", "bytes per token", "with the accumulator", "KL", "perplexity"]
    return (
        f"SmolLM2-135M in float32, {result['chunks']} × {result['tokens_of_a_chunk']:,} tokens, "
        f"full cache {result['full_perplexity']:.2f}:\n\n"
        + table(head, rows())
        + "\n\n"
        + table(["statement", "measured", "at most"], statements())
        + "\n\n![Divergence against bytes](images/xquant.png)"
    )


def sweep(result: dict[str, Any]) -> str:
    """Bits per byte of every encoding on every text."""
    found: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for record in result["records"]:
        encoding, text = record["method"]["encoding"], record["data"]["name"]
        [bits] = [f["value"] for f in record["figures"] if f["name"] == "bits_per_byte"]
        found.setdefault(encoding, {})[text] = bits
        sizes[encoding] = record["model"]["weights_nbytes"]
    order = sorted(found, key=lambda e: (e != "original", -sizes[e]))
    texts = sorted(found[order[0]])
    rows = (
        [e, f"{sizes[e] / 1e6:.1f}", *(f"{found[e][text]:.4f}" for text in texts)] for e in order
    )
    text = table(["bits per byte", "MB", *texts], rows)
    return text + "\n\n![Bits per byte over size, by text](images/sweep.png)"


def readme_of_scaling(results: Path) -> str:
    """What sampling, strategies and measuring reach here, for the README."""

    def read(name: str) -> Any:
        return json.loads((results / f"{name}.json").read_text())

    rates = sample_rates(read("sampling")["experiments"]["sampling"])
    monkeys_, pair = read("monkeys"), read("deep_fast")
    bursts = read("contention")["experiments"]["contention"]["bursts"]
    rows = [
        [
            "[`scale sample`](docs/repeated-sampling.md)",
            "64 samples of a prompt, times llama.cpp in one batch",
            f"**{rates['capax'] / best_peer(rates):.1f} ×**",
        ],
        [
            "[coverage](docs/repeated-sampling.md)",
            "64 products, 10,000 samples each: solved, and what the model's own chances say",
            f"**{monkeys_['coverage'][-1]:.1%}**, {monkeys_['exact'][-1]:.1%}",
        ],
        [
            "[strategies](docs/strategies.md)",
            "equations: one trace of a model that searches, and 64 votes of its twin that does not",
            f"**{pair['search_votes'][0]['accuracy']:.1%}**, "
            f"{pair['direct_votes'][-1]['accuracy']:.1%}",
        ],
        [
            "[`measure runtime`](docs/idealized-runtime.md)",
            "a server's times beside bursts of load: mean, and denoised, over those when quiet",
            f"{bursts['mean_ratio']:.2f} ×, **{bursts['denoised_ratio']:.2f} ×**",
        ],
    ]
    return table(["", "measured", "here"], iter(rows))


def readme(results: dict[str, dict[str, Any]]) -> str:
    """One line for each KV method that has a result, for the README."""
    rows: list[list[str]] = []
    if "kv_speed" in results:
        run = results["kv_speed"]["experiments"]["decode_8192"]
        for peer in ("f16", "q8_0"):
            what = f"decode at depth 8,192, times llama.cpp's with its {peer} cache"
            ratio = run["ratios"]["capax int8"][f"llama.cpp {peer}"]
            rows.append(["[`int8`](docs/kv.md)", what, f"**{ratio:.2f} ×**"])
    if "xquant" in results:
        by = {r["statement"]: r["measured"] for r in results["xquant"]["statements"]}
        rows += [
            [
                "[XQuant](docs/xquant.md) latents, 4 bits",
                "KL to the full cache over that of per-channel codes (KIVI-like) of as many bits",
                f"**{by['latent 4 / KIVI-like 4']:.2f} ×**",
            ],
            [
                "XQuant-CL, 2 bits",
                "KL over that of codes of keys before rotation (KVQuant-like)",
                f"**{by['CL latent 2 / KVQuant-like 2']:.2f} ×**",
            ],
        ]
    if "million" in results:
        for text, losses in results["million"]["losses"].items():
            kl = {r["method"]: r["kl"] for r in losses}
            ratio = kl["per_layer-16-8"] / kl["kivi:bits=2,exact_window=false"]
            what = f"KL over that of KIVI-like 2-bit codes, on {text} text"
            rows.append(["[MILLION](docs/million.md), 2 bits", what, f"**{ratio:.2f} ×**"])
        speeds = {r["method"]: r for r in results["million"]["speeds"]}
        if speeds:
            f16, coded = speeds["f16"], speeds["4 bits"]
            ratio = f16["decode_ms_median"] / coded["decode_ms_median"]
            share = coded["nbytes"] / f16["nbytes"]
            what = f"decode at depth 8,192, times `f16`, in {share:.2f} × its memory"
            rows.append(["MILLION, 4 bits", what, f"**{ratio:.2f} ×**"])
    if "trim_kv" in results:
        kl = {(r["method"], r["memory"]): r["kl"] for r in results["trim_kv"]["quality"]}
        for name in ("stream", "h2o"):
            what = f"KL over that of `{name}`, 128 of 1,024 tokens kept"
            ratio = kl["trim", 128] / kl[name, 128]
            rows.append(["[TRIM-KV](docs/trim-kv.md), trained here", what, f"**{ratio:.2f} ×**"])
    if "landmark" in results:
        for windows in (8, 16):
            row = next(
                r
                for r in results["landmark"]["pass_key"]
                if r["method"] == "landmark k=4" and r["windows"] == windows
            )
            what = f"pass keys answered at {windows} training windows (blind choice: 0)"
            name = "[Landmark attention](docs/landmark-attention.md), trained here"
            rows.append([name, what, f"**{row['right']} of {row['prompts']}**"])
    if "xl3m" in results:
        for name in ("32 K: all", "128 K: all"):
            group = results["xl3m"]["summary"].get(name)
            if group:
                share = group["answered_over_oracle"]["both"]
                what = f"answers over {name.partition(':')[0]} tokens, relative to a perfect choice"
                rows.append(["[XL3M](docs/xl3m.md)", what, f"**{share:.2f} ×**"])
    return table(["method", "measured", "SmolLM2-135M and models trained here"], iter(rows))


def verifier_ladder(result: dict[str, Any]) -> str:
    """Ceilings over a ladder of checkpoints, for weak verifiers of measured soundness."""
    found = result["verifiers"]
    text = table(
        ["verifier", "soundness, first to last rung", "ceiling", "right if accepted at once, last",
         "Spearman", "line"],
        (
            [
                name,
                " to ".join(f"{row['soundness']['value']:.3f}" for row in ends(one["rows"])),
                " to ".join(f"{row['ceiling']['value']:.1%}" for row in ends(one["rows"])),
                f"{1 - one['rows'][-1]['false_positives']['1']:.1%}",
                f"{one['spearman']:.2f}",
                f"{one['line']['slope']:.2f} x + {one['line']['intercept']:.2f}, "
                f"R² {one['line']['r_squared']:.2f}",
            ]
            for name, one in found.items()
        ),
    )  # fmt: skip
    accuracies = [row["accuracy"] for row in next(iter(found.values()))["rows"]]
    useful = [name for name, one in found.items() if one["is_useful"]]
    costly = [row for row in result["stopping"] if row["ratio"] == 4]
    losses = [row for row in result["stopping"] if row["loss_errors"] > 2]
    text += (
        f"\n\n{len(result['rungs'])} checkpoints of one training, {result['n_tasks']} held-out "
        f"products of 2 x 1 and 2 x 2 digits, {result['n_samples']:,} samples each; the first "
        f"attempt is right in {accuracies[0]:.1%} at the first checkpoint and {accuracies[-1]:.1%} "
        f"at the last. The rank correlation of accuracy and ceiling is at least "
        f"{min(one['spearman'] for one in found.values()):.2f} for every verifier; "
        f"{' and '.join(useful)} have a soundness between 0.5 and 0.95 on every rung. With modulo "
        f"3 the checkpoints of {', '.join(map(str, found['modulo 3']['cannot_reach'][:-1]))} and "
        f"{found['modulo 3']['cannot_reach'][-1]} steps never reach what the last one does at its "
        f"first attempt, however often they try.\n\n"
        f"Accuracy among accepted at K = 1, 4, 16 and 64 on samples of their own lies within "
        f"{largest(result['policy_runs']):.1f} standard errors of the closed form "
        f"({len(result['policy_runs'])} comparisons), and within tasks there is no trend over "
        f"attempts (Cochran-Mantel-Haenszel, {len(result['trends'])} tests, |z| at most "
        f"{largest(result['trends']):.1f}). Where a wrong answer costs four times what a right "
        f"one earns, `ResampleUntil` taught on half of the tasks is at most "
        f"{max(row['loss_errors'] for row in costly):.1f} errors worse than the best of 0, 1, 5, "
        f"20 and 100 attempts on the other half, in {len(costly)} cases. Over all four costs it is "
        f"worse than the best by more than two errors in {len(losses)} of {len(result['stopping'])}"
    )
    if losses:
        one = losses[0]
        text += (
            f": at {one['step']} steps with {one['verifier']} and equal costs, two kinds of task "
            f"make it try on where {one['best_fixed']} attempt is best"
        )
    return text + ".\n\n![Ceilings and false positives](images/verifier_ladder.png)"


def extended_tests(result: dict[str, Any]) -> str:
    """What weak and strong tests of programs let through."""
    total, tasks = result["total"], result["all_tasks"]
    return (
        f"On {result['n_tasks']} tasks of HumanEval the first two assertions kill "
        f"{total['killed_weak']} of {total['mutants']} mutants, all assertions with 60 more inputs "
        f"{total['killed_strong']}. The {total['canonical_passes_strong']} canonical solutions and "
        f"{total['solution_passes_strong']} of {result['n_tasks']} written for it without them "
        f"pass; with inputs that keep no promises {total['right_refused_without_promises']} right "
        f"ones would be refused. {tasks['with_50_new_inputs']} of {tasks['n']} tasks have 50 new "
        f"inputs and more, the others {tasks['fewest_new_inputs']} and more but for the "
        f"{tasks['without_literal_call']} whose tests have no call with literals."
    )


def ends(rows: Sequence[Any]) -> tuple[Any, Any]:
    """Return the first and the last."""
    return rows[0], rows[-1]


def largest(rows: Sequence[dict[str, Any]]) -> float:
    """Return the largest |z|."""
    return max(abs(float(row["z"])) for row in rows)


def monkeys(result: dict[str, Any]) -> str:
    """Coverage against exact chances, the forecast and the vote."""
    tests = result["tests"]
    ks = result["ks"]
    columns = zip(
        ks, result["exact"], result["coverage"], result["forecast"], result["votes"], strict=True
    )
    text = table(
        ["k", "exact", "sampled", "forecast from 200 samples, 95 %", "vote"],
        (
            [
                f"{k:,}",
                f"{exact:.1%}",
                f"{made:.1%}",
                f"{f['coverage']:.1%} ({f['low']:.1%}–{f['high']:.1%})",
                f"{vote:.1%}",
            ]
            for k, exact, made, f, vote in columns
        ),
    )
    low, high = tests["chi_squared_range"]
    missed = [
        k
        for k, f, exact in zip(ks, result["forecast"], result["exact"], strict=True)
        if not f["low"] <= exact <= f["high"]
    ]
    outside = f"misses the truth from k = {missed[0]:,} on" if missed else "holds everywhere"
    largest = max(abs(z) for z in result["halves_z"].values())
    text += (
        f"\n\n{result['n_problems']} products, {result['n_samples']:,} samples each at temperature "
        f"{result['temperature']:g}, {result['n_tokens']:,} tokens. Over the {tests['n_tested']} "
        f"products with enough right and wrong samples χ² is {tests['chi_squared']:.1f} (99.9 % "
        f"range {low:.1f} to {high:.1f}); neighbours in time and in the batch are independent "
        f"(z = {tests['dispersion_by_block']:.2f} and {tests['dispersion_by_slot']:.2f}), and two "
        f"halves of the samples differ by at most {largest:.1f} errors. The forecast's band "
        f"{outside}: its Beta distribution is not this model's. The vote ends at "
        f"{result['votes'][-1]:.1%}, where the most frequent answer is right, while coverage "
        "goes on."
    )
    return text + "\n\n![Coverage of 10,000 samples against the truth](images/monkeys.png)"


def deep_fast(result: dict[str, Any]) -> str:
    """Strategies of the model that searches beside votes of the one that does not."""
    search, direct = result["search_votes"], result["direct_votes"]
    revision, best = result["revision"], result["best_of"]

    def cell(row: dict[str, float]) -> str:
        return f"{row['accuracy']:.1%} ({row['tokens']:,.0f})"

    def rows() -> Iterator[list[str]]:
        for i, row in enumerate(search):
            rounds = revision["rounds"]
            revised = cell(rounds[int(row["k"]) - 1]) if row["k"] <= len(rounds) else ""
            yield [f"{row['k']:g}", cell(direct[i]), cell(row), cell(best[i]), revised]

    text = table(
        ["samples or rounds", "direct, vote", "search, vote", "search, best of", "search, revised"],
        rows(),
    )
    kept = result["lengths_without_capped"]
    selected = result["selected_16"][0]
    cut = result["truncated"]
    text += (
        f"\n\nShare solved (new tokens per equation; judging and revising also count the 12 prompt "
        f"tokens they read again). One trace of the searching model beats every vote of the other. "
        f"The vote beats best-of-n because this recipe hardly taught the model to judge (verdicts "
        f"are 0.3 % of the tokens learnt): the ROC area "
        f"of its verdicts is {result['judge_roc_area']:.2f}. Revision beats both here: "
        f"a revised answer is tried first, "
        f"{revision['fixed'][0]:.0%} of wrong ones are mended in the first round and "
        f"{max(revision['broken']):.1%} of right ones broken. Right traces are shorter than wrong "
        f"ones of the same equation (median {-kept['median_difference']:.0f} tokens, "
        f"{kept['n_mixed']} equations with both, p = {kept['p']:.0e}, traces cut off left out); "
        f"the vote of the first 8 of 16 to finish is right in {selected['short']:.1%} where that "
        f"of all is in {selected['vote']:.1%}, and takes {selected['first_saves']:.0%} fewer "
        f"tokens (lengths spread by {kept['spread_of_lengths']:.2f} of their mean). A trace cut to "
        f"0, 10, 50 and 100 % and forced to answer is right in "
        f"{cut['0.0']['accuracy']:.1%}, {cut['0.1']['accuracy']:.1%}, "
        f"{cut['0.5']['accuracy']:.1%} and {cut['1.0']['accuracy']:.1%}: not monotone, as a cut "
        "trace ends in values that were just found wrong, and those are what it answers."
    )
    rows_ = (
        [
            row["statement"],
            f"{row['measured']:.3g}",
            f"{row['at_least']:.2g}",
            "yes" if row["holds"] else "**no**",
        ]
        for row in result["statements"]
    )
    text += (
        "\n\nWhat is claimed, in shares of the equations (the vote against others: at equal "
        "tokens, bound one point and two standard errors):\n\n"
        + table(["statement", "measured", "at least", "holds"], rows_)
        + "\n\nWhere the vote does not hold against revision, revision explains it: it mends "
        f"{revision['fixed'][0]:.0%} of the wrong answers and breaks none. Marks, fitted on "
        f"{result['marks']['n_fitted']} of the equations, gain most where few traces vote: of "
        + ", ".join(
            f"{v['k']} {v['marked']:.1%} instead of {v['vote']:.1%}"
            for v in result["marks"]["votes"][:3]
        )
        + f" on the other {result['marks']['votes'][0]['n_problems']} (twice the error of the "
        f"first difference: {2 * result['marks']['votes'][0]['stderr']:.1%})."
    )
    return text + "\n\n![Equations solved by tokens](images/deep_fast.png)"


def strategies(result: dict[str, Any]) -> str:
    """Strategies under caps, on word problems and on equations."""

    def rows(part: dict[str, Any]) -> Iterator[list[str]]:
        for row in part["rows"]:
            name = str(row["strategy"]).partition(",marks=")[0]
            cap = "" if row["cap"] is None else f"{row['cap']:,}"
            right = f"{row['accuracy'] * row['n_tasks']:.0f} of {row['n_tasks']}"
            yield [f"`{name}`", cap, right, f"{row['tokens']:,.0f}", f"{row['new_tokens']:,.0f}"]

    def by_cap(part: dict[str, Any]) -> Iterator[list[str]]:
        capped = [row for row in part["rows"] if row["cap"] is not None]
        for name in dict.fromkeys(row["strategy"] for row in capped):
            cells = {r["cap"]: r for r in capped if r["strategy"] == name}
            yield [
                f"`{str(name).partition(',marks=')[0]}`",
                *(f"{cells[c]['accuracy']:.1%} ({cells[c]['tokens']:,.0f})" for c in caps),
            ]

    head = ["strategy", "cap", "right", "tokens", "new"]
    words, equations = result["gsm8k"], result["search"]
    pool, n = words["pool"], words["n_tasks"]
    caps = sorted({row["cap"] for row in equations["rows"]} - {None})
    cuts = [row for row in equations["rows"] if "tokens=" in row["strategy"].partition(":")[2][:7]]
    most = max(round(row["accuracy"] * n) for row in words["rows"])
    return (
        f"SmolLM2-135M on the first {n} problems of GSM8K's test set, after three examples in "
        f"conversation, temperature {words['temperature']:g}, at most {words['max_tokens']} tokens "
        "an answer:\n\n"
        + table(head, rows(words))
        + f"\n\nWhat can be seen is that every strategy keeps to its cap and what it spends "
        f"(judging and revising read everything again). What cannot be seen is which is better: "
        f"the best row solves {most} of {n} (none at all would still allow "
        f"{1 - 0.05 ** (1 / n):.0%} at 95 %). Of {pool['n_samples']} samples per problem "
        f"{pool['one_sample']:.1%} are right, {pool['any']:.0%} of the problems have a right one "
        f"among them, and the vote of all solves {pool['vote']:.1%}: right answers are there, but "
        "never the most frequent, and this model cannot tell them by grading or revising. No "
        "aggregation mends that.\n\nThe control is a model of a million parameters that solves "
        f"nine of ten equations ({equations['n_tasks']} of them; its marks are fitted on others), "
        "where votes have something to gain. Right, and tokens taken, by cap:\n\n"
        + table(["strategy", *map(str, caps)], by_cap(equations))
        + "\n\nA cap of 60 tokens cuts many traces off, and one of 120 holds one trace for sure: "
        "all votes are then of one. What more tokens buy is votes, and at 240 those by length or "
        "marks lead the plain one within the noise. Cutting and forcing (`truncate`) gives "
        "accuracy away, as this model was never taught to answer before it has found the value: "
        + ", ".join(
            f"{row['accuracy']:.1%} after {row['strategy'].partition('=')[2].partition(',')[0]}"
            for row in cuts
        )
        + " tokens.\n\n"
        "![Share solved over tokens, by strategy](images/strategies.png)"
    )


def markers(result: dict[str, Any]) -> str:
    """The published solutions of GSM8K."""
    report = result["report"]

    def rows() -> Iterator[list[str]]:
        for name in ("length", "discourse"):
            pooled = report["pooled"][name]
            yield [f"{name}, pooled", f"{pooled['right'] - pooled['wrong']:+.2f}", "",
                   f"{pooled['delta']:+.3f}", f"{pooled['p']:.2g}", ""]  # fmt: skip
            for label, part in (("within problems", "within"), ("less its model's", "by_source")):
                row = report[part][name]
                yield [f"{name}, {label}", f"{row['mean']:+.2f}", f"{row['median']:+.2f}",
                       f"{row['delta']:+.3f}", f"{row['p']:.2g}", row["verdict"]]  # fmt: skip

    counts = report["n_markers"]
    area = result["area"]
    return (
        f"The {report['n_samples']:,} published solutions of GSM8K's test problems, four models' "
        f"(`python -m benchmarks.markers`), lengths in words; "
        f"{report['within']['length']['n_problems']} problems have right and wrong ones:\n\n"
        + table(["right less wrong", "mean", "median", "Cliff's delta", "p", "right is"], rows())
        + "\n\nPooled, right solutions are shorter; within problems they are longer; and less "
        "their models' mean lengths nothing is left, because the model that is right most often "
        f"writes most. There are {counts['hedging']} hedging and {counts['thinking']} thinking "
        "words in all of them: nothing can be said about those. Marks fitted on half of the "
        f"problems weigh a right solution above a wrong one in {area['mean']:.0%} "
        f"({area['low']:.0%}–{area['high']:.0%}) of the pairs in the others, hardly better than "
        "chance."
    )


def contention(result: dict[str, Any]) -> str:
    """What the mean and the minimum make of a server's times under load."""
    result = result["experiments"]["contention"]
    labels = {"quiet": "nothing else", "bursts": "bursts with pauses", "steady": "no pause"}
    text = table(
        ["load", "mean of repeats", "denoised fit", "median error over cells"],
        (
            [
                label,
                f"{result[name]['mean_ratio']:.2f} ×",
                f"{result[name]['denoised_ratio']:.2f} ×",
                f"{result[name]['denoised_error']:.1%}",
            ]
            for name, label in labels.items()
        ),
    )
    text += (
        f"\n\nMultiples of the denoised fit with nothing else running ({result['rounds']} repeats "
        f"of 16 cells, {result['threads']} threads on {result['machine']['cores']} cores"
    )
    if "one_thread" not in result:  # measured before there was one
        text += (
            ", four busy processes). Under a load without a pause the time between tokens is "
            f"{result['token_gap_ratio']:.0f} × the quiet one even at its 5 % quantile."
        )
    else:
        single = result["one_thread"]
        text += (
            f", one busy process for each core). The mean beside bursts is "
            f"{result['raw_ratio']:.2f} × the mean with nothing else. Under a load without "
            "a pause the 5 % quantile of the "
            f"time between tokens is {result['token_gap_ratio']:.2f} × the quiet one with "
            f"{result['threads']} threads and {single['token_gap_ratio']:.2f} × with one, and the "
            f"server's own seconds of CPU are {result['cpu_ratio']:.2f} × and "
            f"{single['cpu_ratio']:.2f} × the quiet ones."
        )
    return text + "\n\n![Mean and least of repeats over the quiet fit](images/contention.png)"


def sample_rates(drawn: dict[str, Any]) -> dict[str, float]:
    """Return each engine's median samples per second."""
    return {
        name: engine["samples_per_second"]["median"] for name, engine in drawn["engines"].items()
    }


def prompt_of(drawn: dict[str, Any]) -> str:
    """Say what was asked; results from before the prompt was GSM8K's have no `shots`."""
    size = f"{drawn['prompt_tokens']:,} tokens"
    if "shots" not in drawn:
        return f"one prompt of {size}"
    return f"a problem of GSM8K after {drawn['shots']} worked ones, {size}"


def best_peer(rates: dict[str, float]) -> float:
    """Return the rate of the fastest engine beside capax."""
    return max(rate for name, rate in rates.items() if name != "capax")


def sampling(result: dict[str, Any]) -> str:
    """Samples per second beside llama.cpp, and the time and memory of bookkeeping."""
    found = result["experiments"]
    drawn, kept = found["sampling"], found["bookkeeping"]
    rates = sample_rates(drawn)
    theirs = best_peer(rates)
    alone = ""
    if "sampling_alone" in found:
        short = sample_rates(found["sampling_alone"])
        alone = (
            f"; on the problem alone, {found['sampling_alone']['prompt_tokens']} tokens, "
            f"{short['capax']:.1f} and {best_peer(short):.1f}: "
            f"{short['capax'] / best_peer(short):.1f} ×"
        )
    small, large = (
        (int(n), min(part["seconds"]), part["peak_rss_bytes"] / 2**20)
        for n, part in kept["problems"].items()
    )
    per_sample = large[1] / (large[0] * kept["n_samples"])
    return (
        f"{drawn['n_samples']} samples of {drawn['answer_tokens']} tokens to {prompt_of(drawn)}, "
        f"SmolLM2 on {drawn['threads']} threads: capax's endpoint draws "
        f"{rates['capax']:.1f} per second, llama.cpp in one batch of as many sequences "
        f"{theirs:.1f}: {rates['capax'] / theirs:.1f} ×{alone} "
        f"(`python -m benchmarks.sampling`, medians of {drawn['rounds']} rounds in turn).\n\n"
        f"Run directory, ledger and checks take {1e6 * per_sample:.0f} µs per sample, "
        f"{per_sample * rates['capax']:.2%} of the time the model takes for it. With "
        f"{small[0]:,} problems of {kept['n_samples']} samples the process reaches "
        f"{small[2]:.0f} MiB, with {large[0]:,} {large[2]:.0f} MiB: what grows is the list of the "
        "samples there are."
    )


def procbench(result: dict[str, Any]) -> str:
    """Specialists by bins of steps, their baselines, SmolLM2, and two kinds of votes."""

    def rows() -> Iterator[list[str]]:
        for one in result["specialists"]:
            name = f"{one['task']} specialist, {one['n_parameters'] / 1e6:.1f} M"
            learnt = f"{one['learnt_steps'][0]}-{one['learnt_steps'][-1]} steps"
            for span, row in one["bins"].items():
                yield [f"{name}: {span} steps", *cells(row)]
            yield [f"{name}: {learnt}, JSON form", *cells(one["json"])]
            yield [f"{name}: {learnt}, at most 64 tokens", *cells(one["free_64_tokens"])]
            yield [f"untrained, same shape: {one['task']}, {learnt}", *cells(one["untrained"])]
        for mode, row in result.get("smollm", {}).items():
            yield [f"SmolLM2-135M, whole instructions, {mode}: 2-6 steps", *cells(row)]
        for task, bins in result.get("public", {}).items():
            for span, row in bins.items():
                yield [f"public generators, {task} specialist: {span} steps", *cells(row)]
        for mode, row in result.get("public_smollm", {}).items():
            yield [f"public generators, SmolLM2-135M, 23 tasks, {mode}: 2-6 steps", *cells(row)]

    def votes() -> Iterator[list[str]]:
        for one in result["specialists"]:
            for way, by_steps in one["votes"].items():
                for steps, row in by_steps.items():
                    yield [f"{one['task']}, {steps} steps: {way}", *cells(row)]

    def cells(row: dict[str, Any]) -> list[str]:
        low, high = row["sm_interval"]
        known = "tokens" in row
        return [
            f"{row['n']}", f"{row['pa']:.1%}", f"{row['sm']:.1%} ({low:.0%}–{high:.0%})",
            f"{row['fm']:.1%}", f"{row['cut']:.0%}",
            f"{row['tokens']:,.0f}" if known else "",
            f"{row['pa_per_1000_tokens']:.2f}" if known else "",
        ]  # fmt: skip

    hazards = []
    for one in result["specialists"]:
        fitted = one["hazard"]
        falls = [f"{spans} steps p = {p:.1g}" for spans, p in one["falls"].items()]
        hazards.append(
            f"{one['task']}: a constant hazard of {fitted['hazard']:.3f} a step fits with R² "
            f"{fitted['r2']:.2f}; that SM falls from {', '.join(falls)}."
        )
    head = ["", "n", "PA", "SM (95 %)", "FM", "cut", "tokens", "PA per 1,000 tokens"]
    return (
        f"{table(head, rows())}\n\n{' '.join(hazards)}\n\n"
        "![PA and SM over steps](images/procbench.png)\n\n"
        f"Tokens are the sampled ones of a problem, all draws together.\n\n{table(head, votes())}"
    )


def trained_swarm(result: dict[str, Any]) -> str:
    """Consensus beside votes, deaf judges, and injections."""

    def rows() -> Iterator[list[str]]:
        for name, share in result["ways"].items():
            spread = f"{share['low']:.1%}–{share['high']:.1%}"
            deaf = [
                f"{result['deaf_judges'][k]['ways'][name]['accuracy']:.1%}" for k in ("1", "2", "3")
            ]
            yield [name, f"{share['accuracy']:.1%} ({spread})", f"{share['tokens']:,.0f}", *deaf]

    head = ["", "right (95 %)", "tokens a question", "1 deaf judge", "2 deaf", "3 deaf"]
    calls = [j["per_call"] for name, j in result["judges"].items() if name != "deaf"]
    deaf = result["judges"]["deaf"]
    pushed = result["injection"]
    gains = result["gains"]
    text = table(head, rows())
    text += (
        f"\n\n{result['n_questions']} questions, {result['repeats']} times each. Reputation over "
        f"the vote on the same answers: {gains['vote'][0]:+.1%} ({gains['vote'][1]:+.1%} to "
        f"{gains['vote'][2]:+.1%}); over a vote that spends the same tokens on further samples: "
        f"{gains['vote, same tokens'][0]:+.1%}. A call prefers the better answer in "
        f"{min(calls):.0%} to {max(calls):.0%} of gold pairs; the deaf judge decides nothing in "
        f"{deaf['undecided']:.0%}.\n\nWrong answers won {pushed['kept: none']['share']:.1%} of "
        f"{pushed['kept: none']['n']} comparisons with right ones as they are, "
        f"{pushed['kept: arguing']['share']:.1%} with a text that argues for them and "
        f"{pushed['kept: neutral']['share']:.1%} with a neutral one; where the judges are shown "
        f"the whole text, {pushed['open: none']['share']:.1%}, "
        f"{pushed['open: arguing']['share']:.1%} and {pushed['open: neutral']['share']:.1%}."
    )
    return text + "\n\n![Accuracy over tokens, and with deaf judges](images/trained_swarm.png)"


def swarm_liars(result: dict[str, Any]) -> str:
    """Judges that lie, weighed in three ways."""
    ways = ("equal weights", "newcomers", "reputation")
    head = ["liars", *(f"right, {way}" for way in ways), *(f"their weight, {way}" for way in ways)]
    rows = (
        [
            k,
            *(f"{found[w]['right']:.1%}" for w in ways),
            *(f"{found[w]['weight']:.1%}" for w in ways),
        ]
        for k, found in result["liars"].items()
    )
    text = (
        f"\n\n{result['n_questions']} questions, {result['n_gold']} gold pairs; verdicts of the "
        f"engine. A vote on the same answers is right in {result['vote']:.1%}."
    )
    return f"{table(head, rows)}{text}\n\n![Accuracy over liars](images/swarm_liars.png)"


def complex_tasks(result: dict[str, Any]) -> str:
    """Families by what samples show, beside blind guessing."""

    def rows() -> Iterator[list[str]]:
        for family, row in result["families"].items():
            levels = row["levels"]
            name = f"{family} {levels[0]}" + (f" to {levels[-1]}" if len(levels) > 1 else "")
            shares = (row[k] for k in ("worst", "average", "majority", "best", "blind"))
            yield [
                name, str(row["n_instances"]), *(f"{share:.1%}" for share in shares),
                f"{row['format_failure_rate']:.1%}", f"{row['tokens_mean']:.0f}",
            ]  # fmt: skip

    head = ["family, level", "tasks", "worst", "average", "vote", "best", "blind best",
            "unreadable", "tokens"]  # fmt: skip
    return (
        f"{table(head, rows())}\n\n{result['model']}, {result['repeats']} samples each at "
        f"temperature {result['temperature']:g}, at most {result['max_tokens']} tokens. Blind best "
        "is that of as many uniform guesses."
    )


def runtime(result: dict[str, Any]) -> str:
    """What a profile says of a served log, of unseen queries, and of deep caches."""
    found = result["experiments"]
    parts = []
    if "served" in found:
        parts.append(_served(found["served"]))
    if "deep" in found:
        deep = found["deep"]
        ratio = deep["token_s"]["4096"] / deep["token_s"]["16"]
        parts.append(
            f"Prompts up to 4,032 tokens{_noise(deep)}: a token at depth 4,096 takes {ratio:.2f} × "
            f"one at depth 16 (likelihood ratio of kappa {deep['kappa_ratio']:.0f}). The decode of "
            "the longest outputs, predicted by a fit that has not seen them: median error "
            f"{deep['decode']['with_kappa']:.1%}, without kappa {deep['decode']['without']:.1%}; "
            f"whole unseen queries {deep['with_kappa']['median']:.1%} and "
            f"{deep['without']['median']:.1%}."
        )
    return "\n\n".join(parts)


def _served(found: dict[str, Any]) -> str:
    priced, unseen, constants = found["bill"], found["held_out"], found["two_constants"]
    rows = [
        ["idealized over measured, sums", f"{priced['ratio']:.3f}", "0.9 to 1.1"],
        ["the same over the engine's own time", f"{priced['ratio_to_engine']:.3f}", ""],
        ["median error of one request", f"{priced['median_error']:.1%}", "15 %"],
        ["outside the engine, per request", f"{1e3 * priced['fixed_s']:.2f} ms", ""],
        ["unseen queries: median error", f"{unseen['median']:.1%}", "5 %"],
        ["unseen queries: 90th percentile", f"{unseen['p90']:.1%}", "12 %"],
        ["two constants: median error", f"{constants['median']:.1%}", "more than the profile"],
        ["rounds differ in the time per token", f"{found['rounds']['differ']:.1%}", "5 %"],
        ["profiling", f"{found['profiling_s']:.0f} s", ""],
        ["as long as so many queries of (91, 128), ten times each",
         f"{found['break_even_queries']:.0f}", "100"],
    ]  # fmt: skip
    tails = ", ".join(f"({p}, {o}) {e:.1%}" for p, o, _, e in unseen["cells"])
    return (
        f"{table(['', 'measured', 'asked for'], rows)}\n\n{priced['n_requests']} "
        f"requests in the log, {sum(priced['left_out'].values())} left out"
        f"{_noise(found)}. Unseen queries (p, o): {tails}."
    )


def _noise(found: dict[str, Any]) -> str:
    """Say that others kept the cores busy, where they did."""
    busy = float(found["machine"]["busy_share_before"])
    return (
        f" (**others kept {busy:.0%} of the cores busy: no measurement**)" if busy > QUIET else ""
    )


def kept_rounds(result: dict[str, Any]) -> str:
    """Milliseconds of rounds with what was read kept, and read again."""

    def rows() -> Iterator[list[str]]:
        for row in result["rounds"]:
            kept, again = row["kept"], row["again"]
            yield [
                f"{row['round']}", f"{row['history']:,}", f"{kept['prefilled']:,.0f}",
                f"{1e3 * kept['seconds']:,.0f}", f"{1e3 * again['seconds']:,.0f}",
                f"{again['seconds'] / kept['seconds']:.1f}",
            ]  # fmt: skip

    head = ["round", "history", "read, kept", "ms, kept", "ms, read again", "ratio"]
    return (
        table(head, rows())
        + f"\n\n{Path(result['model']).stem} on {result['threads']} threads ({result['isa']}), "
        f"{result['appended']} tokens appended and {result['new']} written in each round, medians "
        f"of {result['repeats']} chains, both in turn; "
        f"{result['machine']['busy_share_before']:.0%} of the cores were busy with other work "
        "before. With everything kept round 8 takes "
        f"{result['wall_growth']:.2f} × of round 2 (aim: below 1.3), and the time of a new token "
        f"grows {result['per_token_over_bytes']:.2f} × as much as the bytes it reads (aim: at most "
        f"1.15); reading again costs {min(result['again_over_kept']):.1f} × at least (aim: 2). "
        "Both gave the same tokens (`python -m benchmarks.kept_rounds`).\n\n"
        "![Time of a round, kept and read again](images/kept_rounds.png)"
    )


def players(result: dict[str, Any]) -> str:
    """Trained players by what five samples show, then rounds and trends."""
    things = {"tsp": ("tours", "cities"), "3sat": ("formulas", "variables")}

    def rows() -> Iterator[list[str]]:
        for family, found in result["families"].items():
            name, unit = things[family]
            for kind, player in found["players"].items():
                by_level = [(f"{v} {unit}", row) for v, row in player["by_level"].items()]
                low, *_, high = found["learnt_levels"]
                for label, row in [(f"{low} to {high} {unit}", player["learnt"]), *by_level]:
                    shares = (row[k] for k in ("worst", "average", "majority", "best", "blind"))
                    yield [
                        f"{name}, {kind}, {label}", *(f"{share:.1%}" for share in shares),
                        f"{row['format_failure_rate']:.1%}", f"{row['tokens_mean']:.0f}",
                    ]  # fmt: skip

    head = ["player, level", "worst", "average", "vote", "best", "blind best", "unreadable",
            "tokens"]  # fmt: skip
    text = (
        f"{table(head, rows())}\n\n{result['families']['tsp']['per_level']} held-out tours and "
        f"{result['families']['3sat']['per_level']} formulas of each level, "
        f"{result['repeats']} samples each at temperature {result['temperature']:g}. Blind best is "
        "that of as many uniform guesses."
    )
    for family, found in result["families"].items():
        text += "\n\n" + _players_of(result, found, *things[family])
    return text + "\n\n![Difficulty, samples, rounds](images/players.png)"


def _players_of(result: dict[str, Any], found: dict[str, Any], name: str, unit: str) -> str:
    """Return rounds of a family as a table, and its gap and trends as sentences."""

    def rows() -> Iterator[list[str]]:
        for kind, player in found["players"].items():
            for row, mute in zip(
                *(player["sequential"][c] for c in ("oracle", "mute")), strict=True
            ):
                if row["calls"] in (1, 2, 4, 8):
                    shares = (
                        row["sequential"], mute["sequential"], row["parallel"],
                        row["parallel_without_repeats"],
                    )  # fmt: skip
                    cells = [f"{share:.1%}" for share in shares]
                    yield [f"{kind}, {row['calls']}", *cells, f"{row['answer_tokens']:.0f}"]

    levels = found["levels_in_rounds"]
    head = [f"{name}, {levels[0]} to {levels[-1]} {unit}: calls", "with hints", 'told "wrong"',
            "independent", "without repeats", "tokens with hints"]  # fmt: skip
    value, low, high = found["gap"]
    search, most = found["players"]["search"], result["samples"]
    gains = ", ".join(
        f"{level}: {row['gain']:.2f} ({row['best'][-1]:.2f}, guesses {row['blind'][-1]:.2f})"
        for level, row in search["by_level_whole"].items()
    )
    trend = search["spearman_with_level"]
    constants = "".join(
        f' Always answering "{answer}" scores {score:.1%}.'
        for answer, score in search["constant_answers"].items()
    )
    for kind, player in found["players"].items():
        shares = [f"{share:.1%} with {what}" for what, share in player["by_truth"].items()]
        if shares:
            constants += f" Right by {kind}: {', '.join(shares)}."
    return (
        f"{table(head, rows())}\n\nThe gap, average of search less best of {result['repeats']} of "
        f"direct, is {value:+.1%} ({low:+.1%} to {high:+.1%}, 95 % over tasks). What {most} "
        f"samples of search add to their average, with best of {most} in brackets, by {unit}: "
        f"{gains}. Rank correlation with the level: accuracy {trend['accuracy']:.2f}, tokens on "
        f"learnt levels {trend['tokens_learnt']:.2f}.{constants}"
    )


def text_family(result: dict[str, Any]) -> str:
    """How flat IC is over a family, and what tokenizers, experts and encodings do."""
    family, encodings = result["family"], result["encodings"]
    sizes = [name for name in encodings if name.startswith("bpe4k")]
    fitted = dict(zip(sizes, family["ic"], strict=True))

    def members() -> Iterator[list[str]]:
        for name, row in result["rows"].items():
            # What has no engine format was scored where it was trained.
            r = row["encodings"]["F32"] if "encodings" in row else row["in_torch"]
            yield [
                f"`{name}`",
                f"{row['n_parameters_without_embedding'] / 1e3:.0f} K",
                f"{row['n_parameters'] / 1e3:.0f} K",
                f"{r['flops_per_token'] / 1e6:.2f}",
                f"{r['text_size']:.2f}",
                f"{r['nll']:.3f}",
                f"{r['bits_per_byte']:.3f}",
                f"{r['ic']:.4f}",
                f"{fitted[name]:.4f}" if name in fitted else "",
            ]

    def left_out() -> Iterator[list[str]]:
        for name, row in zip(sizes, family["left_out"], strict=True):
            errors = [row[f"{kind}_error"] for kind in ("law", "line", "neighbour")]
            yield [f"`{name}`", f"{row['nll']:.3f}", *(f"{error:+.1%}" for error in errors)]

    head = ["member", "parameters without embedding", "all", "MFLOP/token", "TS", "NLL"]
    head += ["bits/byte", "IC, b = 0", f"IC, b = {family['bias']:.2f}"]
    text = table(head, members())
    text += (
        f"\n\nOver the four sizes IC spreads by {family['spread']:.1%} of its mean with the fitted "
        f"bias and by {family['spread_without_bias']:.1%} without. Each size predicted by the "
        "others, the bias fitted without it:\n\n"
    )
    text += table(["left out", "NLL", "law", "line in log FLOP", "copy of neighbour"], left_out())
    t = result["tokenizers"]
    parts = t["parts"]
    text += (
        f"\n\nAt one width and depth the BPE's TS is {t['text_size_ratio']:.2f} × that of bytes "
        f"and IC {t['ic'][1]:.4f} instead of {t['ic'][0]:.4f}: {parts['text_size']:+.4f} by TS, "
        f"{parts['nll']:+.4f} by NLL, {parts['flops_per_token']:+.4f} by FLOPs. Per byte it needs "
        f"{t['bits_per_byte'][1]:.3f} bits instead of {t['bits_per_byte'][0]:.3f}, and "
        f"{t['flops_per_byte'][1] / t['flops_per_byte'][0]:.2f} × the operations."
    )
    m = result["mixture"]
    (low, high), (low_8, high_8) = m["nll_interval"]
    text += (
        f"\n\nEight experts at {m['flops_ratio']:.3f} × the operations: NLL {m['nll'][1]:.3f} "
        f"({low_8:.3f} to {high_8:.3f}) beside {m['nll'][0]:.3f} ({low:.3f} to {high:.3f}) of the "
        f"dense model, IC {m['ic'][1]:.4f} beside {m['ic'][0]:.4f}; the least used expert gets "
        f"{m['least_expert_share']:.1%} of the tokens."
    )
    rows = (
        [f"`{name}`", *(f"{e[k]['nll_change']:+.3%}" for k in ("F16", "Q8_0", "Q4_1")),
         *(f"{e[k]['ic_of_bytes']:.4f}" for k in ("F16", "Q8_0", "Q4_1"))]
        for name, e in encodings.items()
    )  # fmt: skip
    head = ["NLL against F32", "F16", "Q8_0", "Q4_1", "IC per byte read: F16", "Q8_0", "Q4_1"]
    return f"{text}\n\n{table(head, rows)}\n\n![Families over compute](images/text_family.png)"


PAGES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "xl3m": ("xl3m.md", xl3m),
    "knowledge": ("knowledge-capacity.md", knowledge),
    "random_strings": ("knowledge-capacity.md", random_strings),
    "text_family": ("information-capacity.md", text_family),
    "million": ("million.md", million),
    "xquant": ("xquant.md", xquant),
    "monkeys": ("repeated-sampling.md", monkeys),
    "extended_tests": ("imperfect-verifiers.md", extended_tests),
    "verifier_ladder": ("imperfect-verifiers.md", verifier_ladder),
    "deep_fast": ("strategies.md", deep_fast),
    "strategies": ("strategies.md", strategies),
    "markers": ("strategies.md", markers),
    "sweep": ("records.md", sweep),
    "sampling": ("repeated-sampling.md", sampling),
    "procbench": ("procbench.md", procbench),
    "complex_tasks": ("complex-tasks.md", complex_tasks),
    "players": ("complex-tasks.md", players),
    "kept_rounds": ("saturation.md", kept_rounds),
    "trained_swarm": ("swarm.md", trained_swarm),
    "swarm_liars": ("swarm.md", swarm_liars),
    "contention": ("idealized-runtime.md", contention),
    "runtime": ("idealized-runtime.md", runtime),
}


def main() -> int:
    """Renew every page that has a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    options = parser.parse_args()
    names = ("kv_speed", "xquant", "million", "trim_kv", "landmark", "xl3m")
    paths = {name: options.results / f"{name}.json" for name in names}
    found = {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}
    text = insert(
        options.readme.read_text(encoding="utf-8"),
        readme(found),
        ("<!-- kv:begin -->", "<!-- kv:end -->"),
    )
    markers = ("<!-- scaling:begin -->", "<!-- scaling:end -->")
    text = insert(text, readme_of_scaling(options.results), markers)
    options.readme.write_text(text, encoding="utf-8")
    for name, (page, make) in PAGES.items():
        path = options.results / f"{name}.json"
        if not path.exists():
            continue
        target = options.docs / page
        markers = (f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
        text = insert(
            target.read_text(encoding="utf-8"), make(json.loads(path.read_text())), markers
        )
        target.write_text(text, encoding="utf-8")
        if path.with_suffix(".png").exists():
            shutil.copy(path.with_suffix(".png"), options.docs / "images" / f"{name}.png")
        print(f"renewed {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
