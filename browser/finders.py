"""Static files that come from installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage

PREFIX, FILE = "vendor", "plotly.min.js"


class PlotlyFinder(BaseFinder):
    """plotly.js out of plotly's wheel, as vendor/plotly.min.js; found without importing plotly, which takes long."""

    def __init__(self, app_names: Any = None) -> None:
        spec = find_spec("plotly")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("plotly is not installed: run make setup")
        self.folder = Path(next(iter(spec.submodule_search_locations))) / "package_data"
        self.storage = FileSystemStorage(location=self.folder)
        self.storage.prefix = PREFIX  # type: ignore[attr-defined]

    def check(self, **kwargs: Any) -> list[Any]:
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        found = [str(self.folder / FILE)] if path == f"{PREFIX}/{FILE}" else []
        return found if find_all else (found[0] if found else [])

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterable[Any]:
        yield FILE, self.storage
