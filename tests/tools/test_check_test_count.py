"""The floor under the number of executed tests."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "check_test_count.py"


@pytest.mark.parametrize(
    ("tests", "skipped", "floor", "exit_code"),
    [(10, 0, 10, 0), (12, 2, 10, 0), (9, 0, 10, 1), (10, 1, 10, 1)],
)
def test_skipped_tests_do_not_count(
    tests: int, skipped: int, floor: int, exit_code: int, tmp_path: Path
) -> None:
    junit, floor_file = tmp_path / "tests.xml", tmp_path / "floor"
    suite = f'<testsuite name="pytest" tests="{tests}" skipped="{skipped}"/>'
    junit.write_text(f"<testsuites>{suite}</testsuites>")
    floor_file.write_text(f"{floor}\n")
    command = [sys.executable, str(CHECK), str(junit), str(floor_file)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == exit_code
    assert f"{tests - skipped} tests ran" in finished.stdout
