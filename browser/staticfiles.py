"""Where static files are found besides static/: plotly.js comes with the plotly wheel."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage

NAME = "plotly.min.js"


class PlotlyFinder(BaseFinder):
    """Serves the wheel's plotly.min.js as vendor/plotly.min.js, and none of the data beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = find_spec("plotly")
        folders = list(spec.submodule_search_locations or []) if spec else []
        self.folder = Path(*folders[:1]) / "package_data"
        self.storage = FileSystemStorage(location=self.folder)
        self.storage.prefix = "vendor"

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> list[str] | str:
        found = str(self.folder / NAME) if path == f"vendor/{NAME}" else ""
        return ([found] if found else []) if find_all else found or []

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, FileSystemStorage]]:
        yield NAME, self.storage

    def check(self, **kwargs: Any) -> list[Any]:
        return []
