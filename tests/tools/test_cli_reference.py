"""The page of commands is what the commands say, and an old page is noticed."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "cli_reference.py"

PROGRAM = """
import click

@click.group()
def root():
    "Do things."

@root.command()
@click.option("--threads", default=2, show_default=True, help="How many.")
def run(threads):
    "Run a thing."

@root.command(hidden=True)
def secret():
    "Not shown."
"""


def reference(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(TOOL), "--root", "program:root", *arguments]
    environment = {"PYTHONPATH": str(directory), "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_visible_command_is_there_with_its_options(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    assert reference(tmp_path, str(page)).returncode == 0
    text = page.read_text()
    assert "## capax run\n" in text
    assert "--threads INTEGER  How many.  [default: 2]" in text
    assert "secret" not in text


def test_a_page_out_of_date_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    reference(tmp_path, str(page))
    assert reference(tmp_path, "--check", str(page)).returncode == 0
    page.write_text(page.read_text().replace("How many.", "How few."))
    finished = reference(tmp_path, "--check", str(page))
    assert finished.returncode == 1
    assert "out of date" in finished.stderr
