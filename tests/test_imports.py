"""What importing capax costs: no torch, no transformers, no training, whatever room is imported."""

import json
import pkgutil
import subprocess
import sys

import capax

HEAVY = ("torch", "transformers", "capax.training")
# Rooms that need an extra which a plain installation does not have.
NEEDS_EXTRA = ("capax.training", "capax.vision", "capax.serving")

LIST_LOADED = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_after_importing(names: list[str]) -> set[str]:
    finished = subprocess.run(
        [sys.executable, "-c", LIST_LOADED, json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(finished.stdout))


def room_modules() -> list[str]:
    found = pkgutil.walk_packages(capax.__path__, prefix="capax.", onerror=lambda name: None)
    return [
        module.name
        for module in found
        if not module.name.startswith(NEEDS_EXTRA) and not module.name.endswith("__main__")
    ]


def test_no_module_outside_training_loads_torch() -> None:
    modules = room_modules()
    assert "capax.errors" in modules
    loaded = loaded_after_importing(modules)
    assert sorted(name for name in loaded if name.startswith(HEAVY)) == []


def test_importing_capax_is_light() -> None:
    loaded = loaded_after_importing(["capax"])
    assert {"tokenizers", "jinja2", "rich", "matplotlib", "huggingface_hub"} & loaded == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert "decimal" in loaded_after_importing(["decimal"])


def test_running_a_model_loads_neither_openssl_nor_what_only_servers_need() -> None:
    unneeded = {"hashlib", "_hashlib", "ssl", "socket", "logging", "asyncio", "subprocess"}
    loaded = loaded_after_importing(["capax.engine.llm", "tokenizers"])
    assert unneeded & loaded == set()
