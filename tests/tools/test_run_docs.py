"""The runner of documented commands: it accepts what a page shows and sees what it does not."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


run_docs = load_tool("run_docs")


def run_text(text: str, tmp_path: Path) -> tuple[int, list[str]]:
    page = tmp_path / "page.md"
    page.write_text(text)
    return run_docs.run_page(page, timeout_s=20.0)


def console(body: str, options: str = "") -> str:
    return f"Some prose.\n\n<!-- exec{options} -->\n```console\n{body}\n```\n"


def test_blocks_without_the_marker_are_not_run(tmp_path: Path) -> None:
    assert run_text("```console\n$ exit 9\n```\n", tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a\nb\n", ["a", "b"]),
        ("12.5 tok/s\n", ["... tok/s"]),
        ("a\nb\nc\nd\n", ["a", "...", "d"]),
        ("a\n", ["a", "..."]),
        ("\x1b[1mbold\x1b[0m  \n", ["bold"]),
        ("anything", []),
    ],
)
def test_output_that_fits_what_is_shown(printed: str, shown: list[str]) -> None:
    assert run_docs.matches(shown, printed)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a\nb\n", ["a"]),
        ("a\n", ["a", "b"]),
        ("x\nspeed\n", ["... speed"]),
        ("a.c\n", ["abc"]),
        ("", ["a"]),
    ],
)
def test_output_that_does_not_fit_is_seen(printed: str, shown: list[str]) -> None:
    assert not run_docs.matches(shown, printed)


def test_commands_of_a_page_share_a_directory(tmp_path: Path) -> None:
    text = console("$ echo hello > f") + console("$ cat f\nhello\n$ echo one \\\n> two\none two")
    assert run_text(text, tmp_path) == (3, [])


def test_wrong_output_and_exit_codes_are_reported_with_their_line(tmp_path: Path) -> None:
    n_commands, failures = run_text(console("$ echo a\nb\n$ false"), tmp_path)
    assert n_commands == 2
    assert [failure.split(":")[0] for failure in failures] == ["line 5", "line 7"]


def test_an_expected_exit_code_is_no_failure(tmp_path: Path) -> None:
    assert run_text(console("$ exit 3", " exit=3"), tmp_path) == (1, [])
    assert len(run_text(console("$ exit 0", " exit=3"), tmp_path)[1]) == 1


def test_python_blocks_run(tmp_path: Path) -> None:
    good = "<!-- exec python -->\n```python\nx = 1\nassert x == 1\n```\n"
    assert run_text(good, tmp_path) == (1, [])
    assert len(run_text(good.replace("== 1", "== 2"), tmp_path)[1]) == 1


@pytest.mark.parametrize("text", ["<!-- exec -->\nprose\n", "<!-- exec -->\n```console\n$ true\n"])
def test_a_marker_without_a_whole_block_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line [12]:"):
        run_text(text, tmp_path)
