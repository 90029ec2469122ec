"""python -m bench: the pipeline over its floor, storage, pages; one JSON object a line."""

from __future__ import annotations

from bench import pages, pipeline, storage
from bench.site import site


def main() -> None:
    with site() as folder:
        run = pipeline.measure(folder)
        storage.measure(run)
        pages.measure(run)


if __name__ == "__main__":
    main()
