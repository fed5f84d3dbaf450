"""Nothing in the package can be talked into running code that came in a file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import capax

SOURCE = Path(capax.__file__).parent
MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib",
    "jsonpickle", "pandas",
}  # fmt: skip
# The program of the isolated process; it runs generated code, after the lock-down.
SANDBOXED = Path("scaling/sandbox/inside.py")
RUNS_CODE = (" exec()", " compile()")
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Attributes of modules whose other parts are harmless.
CALLS = {
    ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "load_all"),
    ("torch", "load"), ("torch", "jit"), ("builtins", "eval"), ("builtins", "exec"),
    ("builtins", "compile"), ("numpy", "fromregex"), ("np", "fromregex"), ("runpy", "run_path"),
}  # fmt: skip


def offences(source: str, name: str = "<text>") -> Iterator[str]:
    """Yield a line for every import or call that can turn data into running code."""
    for node in ast.walk(ast.parse(source, name)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
            if node.module == "yaml" and any("load" in a.name for a in node.names):
                yield f"{where} from yaml import load"
        else:
            imported = []
        for module in imported:
            if module.split(".")[0] in MODULES:
                yield f"{where} import {module}"
        if (
            isinstance(node, ast.Attribute)
            and (ast.unparse(node.value), node.attr) in CALLS
            and not is_weights_only(source, node)
        ):
            yield f"{where} {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield f"{where} {node.func.id}()"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and not is_constant(keyword.value, False):
                    yield f"{where} allow_pickle"
                if keyword.arg == "trust_remote_code" and not is_constant(keyword.value, False):
                    yield f"{where} trust_remote_code"


def is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def is_weights_only(source: str, function: ast.Attribute) -> bool:
    """Tell whether `function` is `torch.load` called with `weights_only=True`."""
    if (ast.unparse(function.value), function.attr) != ("torch", "load"):
        return False
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.lineno, node.func.col_offset) == (function.lineno, function.col_offset)
        and any(k.arg == "weights_only" and is_constant(k.value, True) for k in node.keywords)
        for node in ast.walk(ast.parse(source))
    )


def test_the_package_has_no_unsafe_deserialiser() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10
    found = [
        offence
        for path in files
        for offence in offences(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE)))
    ]
    outside = [f for f in found if not (f.startswith(f"{SANDBOXED}:") and f.endswith(RUNS_CODE))]
    assert outside == []


def test_only_the_sandboxed_process_runs_code_and_nothing_imports_it() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            assert not any("inside" in name.split(".") for name in names), path


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, marshal as m",
        "from shelve import open",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "eval('1')",
        "exec(text)",
        "__import__(name)",
        "yaml.load(f)",
        "from yaml import unsafe_load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "f = torch.load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_walk_sees_each_of_them(line: str) -> None:
    assert len(list(offences(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "re.compile(pattern)",
        "yaml.safe_load(f)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "json.load(f)",
        "x = 'import pickle'",
    ],
)
def test_the_walk_lets_harmless_code_pass(line: str) -> None:
    assert list(offences(line)) == []
