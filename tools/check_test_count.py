"""Fail when fewer tests ran than the committed floor: a suite that silently shrinks is no suite.

Reads the JUnit file that 'make test' writes. Skipped tests do not count as run. Raise the floor
when the suite has grown; lower it only with the reason in the commit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def executed_tests(junit: Path) -> int:
    """Return the number of tests in a JUnit file that ran, passed or failed."""
    suites = ET.parse(junit).getroot().iter("testsuite")
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def main() -> int:
    """Compare the count of a JUnit file with the floor file; exit 1 when it is below."""
    parser = argparse.ArgumentParser(description="check that enough tests ran")
    parser.add_argument("junit", type=Path)
    parser.add_argument("floor", type=Path)
    options = parser.parse_args()
    floor = int(options.floor.read_text())
    executed = executed_tests(options.junit)
    print(f"{executed} tests ran, the floor in {options.floor} is {floor}")
    if executed < floor:
        print("tests were lost, or skipped for something this machine lacks", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
