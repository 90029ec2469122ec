"""The training text: the demo data set, the standard library's tests, and installed packages."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from demo import corpus

PARTS = ("lib", "test", "site")
Document = tuple[str, str]

# Well-known packages that are pure Python to a good part; those not installed are skipped.
# fmt: off
PACKAGES = (
    "django", "torch", "transformers", "sympy", "pandas", "plotly", "numpy", "networkx", "pip",
    "pygments", "wandb", "transformer_lens", "huggingface_hub", "setuptools", "datasets",
    "narwhals", "mpmath", "pydantic", "celery", "opentelemetry", "accelerate", "prompt_toolkit",
    "rich", "kombu", "fsspec", "anyio", "multiprocess", "jinja2", "packaging", "click", "typer",
    "urllib3", "requests", "aiohttp", "httpx", "httpcore", "idna", "yaml", "tqdm",
    "charset_normalizer", "dill", "safetensors", "tokenizers", "einops", "fastapi", "starlette",
    "uvicorn", "amqp", "dateutil", "vine", "billiard", "asgiref", "sqlparse", "markdown_it", "attr",
    "attrs", "beartype", "jaxtyping", "typeguard", "joblib", "regex", "torchgen", "filelock",
)
# fmt: on
PACKAGE_CHARS = 9_000_000
REPETITIVE_CHARS = 2_500_000
REPETITIVE = {"plotly", "beartype", "transformer_lens", "pygments", "wandb", "mpmath"}
MAX_CHARS = 400_000


def write(folder: Path, chars: int | None) -> dict[str, int]:
    """Write `<part>_<split>.jsonl`, one [path, text] a line, and return the number of files of each."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for part, documents in (("lib", corpus.documents()), ("test", stdlib_tests()), ("site", packages())):
        for split, chosen in split_documents(part, documents).items():
            kept = list(first(chosen, chars))
            lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in kept]
            (folder / f"{part}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            counts[f"{part}_{split}"] = len(kept)
    return counts


def read(folder: Path, part: str, split: str) -> list[str]:
    """The texts of one part and split, in the order they were written."""
    with open(folder / f"{part}_{split}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line)[1] for line in lines]


def split_documents(part: str, documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Hold out 2 % of the standard library's files; packages are never what the model is measured on."""
    splits: dict[str, list[Document]] = {"train": [], "validation": []}
    for path, text in documents:
        held_out = part != "site" and corpus.is_validation(path)
        splits["validation" if held_out else "train"].append((path, text))
    return splits


def first(documents: Iterable[Document], chars: int | None) -> Iterator[Document]:
    """Yield documents until they hold `chars` characters."""
    total = 0
    for path, text in documents:
        if chars is not None and total >= chars:
            return
        total += len(text)
        yield path, text


def stdlib_tests() -> Iterator[Document]:
    """The standard library's own tests, where they are installed (Debian and Ubuntu leave them out)."""
    for path, text in corpus.unique(corpus.sources(corpus.stdlib_root())):
        if corpus.is_test(path):
            yield path, text


def packages() -> Iterator[Document]:
    """Files of those of PACKAGES that are installed, capped per package."""
    root = Path(sysconfig.get_path("purelib"))
    found = (document for name in PACKAGES if (root / name).is_dir() for document in package(root, name))
    for _, group in groupby(corpus.unique(found), key=lambda document: document[0].split("/")[0]):
        members = list(group)
        cap = REPETITIVE_CHARS if members[0][0].split("/")[0] in REPETITIVE else PACKAGE_CHARS
        yield from first(members, cap)


def package(root: Path, name: str) -> Iterator[Document]:
    """One package's files in hash order, so that a cap cuts a sample of it and not its alphabet."""
    documents = [
        (f"{name}/{path}", text) for path, text in corpus.sources(root / name) if len(text) <= MAX_CHARS
    ]
    for path, text in sorted(documents, key=lambda document: corpus.sha256(document[0])):
        # transformers generates modeling_*.py from its modular_*.py: the same text twice
        if not (name == "transformers" and "/models/" in path and "modular_" in path):
            yield path, without_licence(path, text)


def without_licence(path: str, text: str) -> str:
    """Cut a leading copyright comment, in nine files of ten: copies by the thousand are learnt by heart."""
    licensed = text.startswith("# Copyright") or text.startswith("# coding=utf-8\n# Copyright")
    if not licensed or "\n\n" not in text or int(corpus.sha256(path)[:8], 16) % 10 == 0:
        return text
    return text[text.index("\n\n") :].lstrip("\n")
