"""Keep a finished sweep as one result: `sweep.json` and its picture.

    capax measure sweep smollm2-135m wikitext.txt gsm8k.txt python.txt -o DIR --windows 16
    python -m benchmarks.sweep DIR --out benchmarks/results

The texts measured here: the first 60 kB each of WikiText-2's validation part, of GSM8K's test
questions, and of `argparse.py` from Python's standard library.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import msgspec

from capax.measuring.records import list_records


def main() -> None:
    """Read the records and write them together."""
    parser = argparse.ArgumentParser(description="keep a finished sweep")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    records = [found.record for found in list_records(options.folder / "records").found]
    content = {"records": [msgspec.to_builtins(record) for record in records]}
    (options.out / "sweep.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.copy(options.folder / "sweep.png", options.out / "sweep.png")


if __name__ == "__main__":
    main()
