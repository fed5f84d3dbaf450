import tomllib
from pathlib import Path

import capax


def test_a_source_tree_has_the_version_of_its_project_file() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert capax._source_version() == tomllib.loads(text)["project"]["version"]
