"""Which way imports go, and how long files are: seen in fresh interpreters, where nothing is loaded yet."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "sae_backend/core").rglob("*.py"))
BACKEND = sorted((ROOT / "sae_backend").rglob("*.py"))
HEAVY = {"torch", "transformers", "transformer_lens", "numba", "safetensors", "tokenizers"}
SERVICES = {"django", "celery", "psycopg", "redis", "kombu", "environ"}
TORCH_FREE = [
    "sae_backend.core.config", "sae_backend.core.detected", "sae_backend.core.matching", "sae_backend.core.results",
    "sae_backend.core.text", "sae_backend.packing",
]  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_by(code: str) -> set[str]:
    """Names of all modules loaded by code in a new interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "sae_backend.settings", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {m.split(".")[0] for m in modules}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def test_the_numerical_core_loads_neither_django_nor_celery_nor_a_database() -> None:
    names = [name_of(p) for p in CORE]
    loaded = loaded_by("\n".join(f"import {n}" for n in names))
    assert set(names) <= loaded
    assert not packages(loaded) & (SERVICES | {"browser"})


@pytest.mark.parametrize("name", TORCH_FREE)
def test_records_and_packing_load_no_torch(name: str) -> None:
    assert not packages(loaded_by(f"import {name}")) & (HEAVY | SERVICES)


def test_the_web_process_loads_no_torch() -> None:
    views = [name_of(p) for p in sorted((ROOT / "browser").rglob("*.py")) if "migrations" not in p.parts]
    code = "import django; django.setup(); import browser.urls, browser.wsgi\n"
    loaded = loaded_by(code + "\n".join(f"import {n}" for n in views if ".management" not in n))
    assert {"django", "browser"} <= packages(loaded)
    assert not packages(loaded) & HEAVY


def test_commands_of_the_site_load_no_torch_until_they_need_it() -> None:
    commands = [name_of(p) for p in sorted((ROOT / "browser/management/commands").glob("[!_]*.py"))]
    loaded = loaded_by("import django; django.setup()\n" + "\n".join(f"import {n}" for n in commands))
    assert not packages(loaded) & HEAVY


@pytest.mark.parametrize("path", BACKEND, ids=name_of)
def test_the_backend_imports_nothing_of_the_browser(path: Path) -> None:
    assert not [n for n in imports(path) if n.split(".")[0] == "browser"]


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_of_the_backend_only_itself_and_packing(path: Path) -> None:
    ours = [n for n in imports(path) if n.startswith("sae_backend")]
    assert all(n.startswith(("sae_backend.core", "sae_backend.packing")) for n in ours), ours


def test_the_backend_package_is_empty_so_that_a_notebook_loads_nothing_with_it() -> None:
    assert (ROOT / "sae_backend/__init__.py").read_text() == ""


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("sae_backend", "browser", "demo", "bench")
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for f in folders for p in (ROOT / f).rglob("*.py")}
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n >= 400 and "migrations" not in p.parts}
