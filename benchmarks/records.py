"""Keep records of a text family and of SmolLM2 on one set of texts, and draw them.

    python -m benchmarks.records --out benchmarks/results/records --docs docs

After `benchmarks.text_family`, whose held-out texts and models these are: the commands a user
would type, and the folder of records they leave, for `capax measure list|compare|leaderboard`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.text_family import Corpus
from capax.cli.main import run

MODELS = ("bpe4k-32", "bpe4k-64", "bpe4k-96", "bpe4k-128")
MAX_TOKENS = 256  # what the smaller windows hold; with another limit records are not comparable


def main() -> int:
    """Score every model, write the page and the picture; returns the first exit code but 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/records"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--models", type=Path, default=Path("models/text-family"))
    parser.add_argument("--work", type=Path, default=Path("build/text-family"))
    o = parser.parse_args()
    data = o.work / "held-out.jsonl"
    lines = (json.dumps({"text": text}) + "\n" for text in Corpus(o.work).unseen())
    data.write_text("".join(lines))
    for model in (*(str(o.models / f"{name}.gguf") for name in MODELS), "smollm2-135m"):
        command = ["measure", "capacity", model, "--data", str(data), "--record", str(o.out)]
        if code := run([*command, "--max-tokens", str(MAX_TOKENS)]):
            return code
    page = ["measure", "leaderboard", str(o.out), "-o", str(o.work / "leaderboard.html")]
    picture = ["measure", "plot", "--records", str(o.out), "--figure", "bits_per_byte"]
    picture += ["--against", "n_params", "-o", str(o.docs / "images" / "records.png")]
    return run(page) or run(picture)


if __name__ == "__main__":
    sys.exit(main())
