"""How one latent of one run is cited: BibTeX, a sentence, Markdown, and an address that goes on showing the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.utils.html import format_html
from django.utils.safestring import SafeString

from browser.queries.latents import counted_tokens
from browser.queries.saes import ResolvedSae

EMBED_WIDTH, EMBED_HEIGHT = 640, 480  # of the frame, unless whoever asks has less room
# BibTeX counts braces even behind a backslash, so that neither may be left in a field.
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", **{c: f"\\{c}" for c in "$&#_%"},
}  # fmt: skip


@dataclass(frozen=True)
class Citation:
    """One run of an SAE, or one latent of it, said so that others find the same numbers and contexts."""

    resolved: ResolvedSae
    index: int | None  # None for the whole SAE
    url: str  # pinned to the run, with the view that was on the screen
    embed: str = ""  # the address of the embed; an SAE has none

    @property
    def id(self) -> str:
        return f"sae:{self.resolved.pin}" + ("" if self.index is None else f"/{self.index}")

    @property
    def title(self) -> str:
        sae = self.resolved.sae
        of = ", ".join(_line(part) for part in (sae.lm.name, sae.hook_name, sae.name))
        what = "Sparse autoencoder" if self.index is None else f"Latent {self.index} of"
        return f"{what} sae:{sae.public_id} ({of})"

    @property
    def when(self) -> datetime:
        """When the run was published; the same on every day that it is cited."""
        run = self.resolved.run
        return run.live_at or run.computed_at or run.created_at

    @property
    def note(self) -> str:
        run = self.resolved.run
        return f"Run r{run.number} on {_line(run.dataset.name)}, {counted_tokens(run):,} tokens"

    @property
    def bibtex(self) -> str:
        fields = {
            "title": _tex(self.title),
            "year": f"{self.when.year}",
            "date": f"{self.when:%Y-%m-%d}",
            "url": self.url,
            "note": _tex(self.note),
        }
        lines = [f"  {name:<5} = {{{value}}}" for name, value in fields.items()]
        key = "-".join(["sae", self.resolved.sae.public_id, *([] if self.index is None else [str(self.index)])])
        return "\n".join([f"@misc{{{key},", ",\n".join(lines), "}"])

    @property
    def plain(self) -> str:
        return f"{self.title}. {self.note}, {self.when.day} {self.when:%B %Y}. {self.url}"

    @property
    def markdown(self) -> str:
        words = "".join(f"\\{c}" if c in r"\[]`*_<>" else c for c in self.title)
        return f"[{words}]({self.url})"

    def as_json(self) -> dict[str, str]:
        said = {name: getattr(self, name) for name in ("id", "title", "url", "bibtex", "plain", "markdown")}
        return said if self.index is None else {**said, "embed": self.embed, "html": self.html}

    @property
    def html(self) -> SafeString:
        return frame(self.embed, self.title)


def frame(address: str, title: str, width: int = EMBED_WIDTH, height: int = EMBED_HEIGHT) -> SafeString:
    """The HTML that shows an embed on another site."""
    return format_html(
        '<iframe src="{}" title="{}" width="{}" height="{}" loading="lazy" style="border:0;max-width:100%"></iframe>',
        address, title, width, height,
    )  # fmt: skip


def _line(text: str) -> str:
    """Names are people's, and may have line ends."""
    return " ".join(text.split())


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)
