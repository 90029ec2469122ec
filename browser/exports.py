"""Lists as files: written as they are read, so that a million latents take no more memory than a page of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from browser.queries import latent_list
from browser.queries.columns import COLUMNS
from browser.queries.latent_list import TOKEN_LISTS, Filter
from browser.queries.latents import vocabulary
from browser.queries.saes import ResolvedSae

if TYPE_CHECKING:
    import pyarrow as pa

FIRST = ("index", "status", "firings", "nearest_live")  # before the statistics that a list can be sorted by
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets work out
GROUP = 32_768  # latents in a row group of a Parquet file: what is held at once


class Line:
    """A file that gives back what is written to it, for the csv module."""

    def write(self, text: str) -> str:
        return text


class _Sink(io.RawIOBase):
    """A file whose bytes are taken away while it is written: a Parquet file is, from its beginning to its end."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytes:
        """What was written since the last time."""
        data, self._parts = b"".join(self._parts), []
        return data


def as_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A head and a line for each row."""
    writer = csv.writer(Line())
    yield writer.writerow(names)
    for row in rows:
        yield writer.writerow([cell(row[name]) for name in names])


def cell(value: Any) -> Any:
    """What spreadsheets would take for a formula is marked as text by an apostrophe: names are people's."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def latents_csv(resolved: ResolvedSae, wanted: Filter) -> Iterator[str]:
    """Statistics of the latents that the filter lets through, in its order."""
    names = [*FIRST, *(column.name for column in COLUMNS), "logit_class"]
    return as_csv(names, latent_list.every(resolved.run.pk, wanted))


def latents_parquet(resolved: ResolvedSae, wanted: Filter) -> Iterator[bytes]:
    """The same with strongest and promoted tokens as text; undefined is null. The run is named in its metadata."""
    import pyarrow.parquet as pq  # takes a while, and few ask

    schema, words, sink = _schema(resolved), vocabulary(resolved.sae.lm), _Sink()
    rows = latent_list.every(resolved.run.pk, wanted)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP)):
            plain = [row | {name: [words.text(t) for t in row[name]] for name in TOKEN_LISTS} for row in group]
            writer.write_table(_table(plain, schema))
            yield sink.taken()
    yield sink.taken()


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema)


def _schema(resolved: ResolvedSae) -> pa.Schema:
    import pyarrow as pa

    kinds = {"status": pa.string(), "firings": pa.int64()}
    fields = [pa.field(name, kinds.get(name, pa.int32())) for name in FIRST]
    fields += [pa.field(column.name, pa.float64()) for column in COLUMNS]
    fields += [pa.field("logit_class", pa.string())]
    fields += [pa.field(name, pa.list_(pa.string())) for name in TOKEN_LISTS]
    sae, run = resolved.sae, resolved.run
    about = {"sae": resolved.pin, "name": sae.name, "model": sae.lm.name, "hook_name": sae.hook_name}
    return pa.schema(fields, {**about, "run": f"r{run.number}", "dataset": run.dataset.name})
