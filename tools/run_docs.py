"""Run the commands shown in Markdown pages and compare what they print.

A fenced block is run when the line before it is `<!-- exec -->`:

    <!-- exec -->
    ```console
    $ capax --version
    capax, version ...
    ```

Lines that start with `$ ` are commands (`> ` continues one); the lines after a command are what it
must print, standard output and standard error together. `...` stands for any text, a line that is
only `...` for any number of lines, and a command with nothing below it may print anything.
`<!-- exec exit=3 -->` expects that exit code of the last command (0 otherwise), and
`<!-- exec python -->` runs a block of Python. All blocks of a page share one temporary directory,
in which `models` is the repository's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MARKER = re.compile(r"^<!--\s*exec(?P<options>[^>]*?)-->\s*$")

MODELS = Path(__file__).resolve().parents[1] / "models"


@dataclass
class Command:
    """One shell command of a page and the text it must print."""

    text: str
    line: int
    expected: list[str] = field(default_factory=list)
    exit_code: int = 0


@dataclass
class Block:
    """One marked block: its commands, or the source of a Python program."""

    commands: list[Command]
    is_python: bool = False


def marked_blocks(page: str) -> Iterator[Block]:
    """Yield the marked blocks of a Markdown text; raise ValueError on a marker without a block."""
    lines = page.splitlines()
    index = 0
    while index < len(lines):
        marker = MARKER.match(lines[index])
        index += 1
        if not marker:
            continue
        if index >= len(lines) or not lines[index].startswith("```"):
            raise ValueError(
                f"line {index}: an exec marker must stand directly above a fenced block"
            )
        start = index + 1
        end = next((i for i in range(start, len(lines)) if lines[i].startswith("```")), None)
        if end is None:
            raise ValueError(f"line {index + 1}: the fenced block has no end")
        options = marker["options"].split()
        body = lines[start:end]
        if "python" in options:
            yield Block([Command("\n".join(body), start)], is_python=True)
        else:
            commands = parse_console(body, start)
            exits = [o.removeprefix("exit=") for o in options if o.startswith("exit=")]
            if exits:
                commands[-1].exit_code = int(exits[0])
            yield Block(commands)
        index = end + 1


def parse_console(body: list[str], first_line: int) -> list[Command]:
    """Split the lines of a console block into commands, each with its expected output."""
    commands: list[Command] = []
    for offset, line in enumerate(body):
        if line.startswith("$ "):
            commands.append(Command(line[2:], first_line + offset + 1))
        elif not commands:
            raise ValueError(f"line {first_line + offset + 1}: a console block starts with '$ '")
        elif line.startswith("> ") and not commands[-1].expected:
            commands[-1].text += "\n" + line[2:]
        else:
            commands[-1].expected.append(line)
    for command in commands:
        while command.expected and not command.expected[-1].strip():
            command.expected.pop()
    return commands


def matches(expected: list[str], printed: str) -> bool:
    """Tell whether printed text fits the expected lines, where `...` stands for any text."""
    if not expected:
        return True
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += (
                r"[^\n]*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"
            )
    text = "".join(line.rstrip() + "\n" for line in ANSI.sub("", printed).strip("\n").splitlines())
    return re.fullmatch(pattern, text) is not None


def run_block(block: Block, directory: Path, timeout_s: float) -> list[str]:
    """Run a block's commands in order; return one message for each that did not do as shown."""
    failures = []
    environment = os.environ | {
        "CAPAX_RECORD": "records",  # in the page's directory, not among the user's own
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    for command in block.commands:
        shell = [sys.executable] if block.is_python else ["bash"]
        finished = subprocess.run(
            [*shell, "-c", command.text],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if finished.returncode != command.exit_code:
            failures.append(
                f"line {command.line}: exit code {finished.returncode}, shown is "
                f"{command.exit_code}: {command.text}\n{finished.stdout}"
            )
        elif not matches(command.expected, finished.stdout):
            shown = "\n".join(command.expected)
            failures.append(
                f"line {command.line}: {command.text}\n--- shown\n{shown}\n--- printed\n"
                f"{finished.stdout}"
            )
    return failures


def run_page(path: Path, timeout_s: float) -> tuple[int, list[str]]:
    """Run a page's marked blocks; return how many commands ran and the failures."""
    n_commands, failures = 0, []
    with tempfile.TemporaryDirectory(prefix="capax-docs-") as directory:
        (Path(directory) / "models").symlink_to(MODELS)
        for block in marked_blocks(path.read_text(encoding="utf-8")):
            n_commands += len(block.commands)
            failures += run_block(block, Path(directory), timeout_s)
    return n_commands, failures


def main() -> int:
    """Run the pages named on the command line; exit 1 when one does not do as it shows."""
    parser = argparse.ArgumentParser(description="run the commands shown in Markdown pages")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per command")
    options = parser.parse_args()
    failed = False
    for page in options.pages:
        started = time.perf_counter()
        try:
            n_commands, failures = run_page(page, options.timeout)
        except (ValueError, subprocess.TimeoutExpired) as error:
            n_commands, failures = 0, [str(error)]
        for failure in failures:
            print(f"{page}, {failure}", file=sys.stderr)
        failed |= bool(failures)
        verdict = "FAILED" if failures else "ok"
        seconds = time.perf_counter() - started
        print(f"{page}: {n_commands} commands, {seconds:.1f} s, {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
