"""The Hugging Face hub, or a mirror that HF_ENDPOINT names: what a repository holds, and its files one by one.

Nothing of a repository is run. `token` is True for the one that this machine has, False for what everybody may read.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_backend.core.silence import Silence, Silent, limited

SECONDS = 30.0  # for one answer
SILENCE = 120.0  # in which nothing more comes
MOST_FILES = 200_000
LONGEST_PATH = 400  # characters
PART = r"[\w][\w.-]{0,95}"  # of a name, before or after its slash
REVISION = r"[\w][\w./-]{0,199}"
_NAME = re.compile(rf"{PART}(/{PART})?", re.ASCII)
_REVISION = re.compile(REVISION, re.ASCII)
Kind = Literal["repository", "model", "dataset"]  # of an SAE, a language model, text
Report = Callable[[int], None]

# What else may be done where the hub does not give something, for each kind: what is closed, and what is away.
_TOKEN = "staff may add it once the workers have, as HF_TOKEN, the token of an account that may read it"
CLOSED = {"repository": "download it, if you may, and upload the files here", "model": _TOKEN, "dataset": _TOKEN}
_FOLDER = "give a folder of the server's"
SILENT = "the hub has stopped sending anything, and was given up: try again in a while, or {instead}"
ILL = "the hub answers with status {status}, which may pass: try again in a while"
INSTEAD = {"repository": "upload the files", "model": _FOLDER, "dataset": _FOLDER}


class HubError(Exception):
    """What the hub does not give, with a sentence that says what to do."""


@dataclass(frozen=True)
class Repository:
    """What a repository, or a folder of it, holds at one commit."""

    kind: Kind
    name: str
    commit: str
    files: dict[str, int]  # bytes, by path
    token: bool
    silence: float = SILENCE  # seconds without a new byte after which the hub is given up

    @property
    def size(self) -> int:
        return sum(self.files.values())


def look(
    kind: Kind, name: str, revision: str = "", folder: str = "", token: bool = True, silence: float = SILENCE
) -> Repository:
    """Ask for a repository's files at a branch, tag or commit; those whose paths could do harm are left out.

    `silence`: seconds after which a hub that sends nothing is given up.
    """
    check_name(name, revision)
    from huggingface_hub import HfApi, RepoFile

    where: dict[str, Any] = {"repo_type": _type(kind)}
    with _explained(kind, name, revision, folder), limited(silence) as waiting:
        api = HfApi(token=None if token else False)
        commit = str(api.repo_info(name, revision=revision or None, timeout=SECONDS, **where).sha)
        files: dict[str, int] = {}
        waiting.came()
        for entry in api.list_repo_tree(name, folder or None, recursive=True, revision=commit, **where):
            waiting.came()
            if isinstance(entry, RepoFile) and _is_harmless(entry.path, folder):
                files[entry.path] = int(entry.size or 0)
            if len(files) > MOST_FILES:
                raise HubError(f"the {kind} {name} has more than {MOST_FILES:,} files: choose a smaller one")
    return Repository(kind, name, commit, files, token, silence)


def check_name(name: str, revision: str = "") -> None:
    """Refuse what cannot be on the hub, without asking it."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise HubError(f"{name[:100]!r} is no name on the hub: it looks like namespace/name, say openai-community/gpt2")
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(f"{revision[:100]!r} is no branch, tag or commit on the hub")


def _type(kind: Kind) -> str:
    return "dataset" if kind == "dataset" else "model"


def _is_harmless(path: str, folder: str) -> bool:
    """Whether a path stays inside the folder that was asked for, and hides nothing: the hub is not trusted for that."""
    plain = len(path) <= LONGEST_PATH and path.isprintable() and "\\" not in path
    return plain and path.startswith(f"{folder}/" if folder else "") and not re.search(r"(^|/)(\.|/|$)", path)


def fetch(repository: Repository, path: str, report: Report = lambda _: None, into: Path | None = None) -> Path:
    """Download one file, into the cache that language models are loaded from, or a folder; a silent hub is given up.

    `report` takes its bytes; what that raises ends the download, or, where the hub's own client in Rust is at it and
    hears nothing, comes once the file is there.
    """
    from huggingface_hub import hf_hub_download

    raised: list[Exception] = []
    with _explained(repository.kind, repository.name, repository.commit, path), limited(repository.silence) as waiting:
        try:
            here = Path(
                hf_hub_download(
                    repository.name, path, repo_type=_type(repository.kind), revision=repository.commit, local_dir=into,
                    token=None if repository.token else False, tqdm_class=_reporting(report, raised, waiting),
                )
            )  # fmt: skip
        finally:
            if raised:
                raise raised[0]
    if here.stat().st_size != repository.files[path]:
        raise HubError(f"{path} of {repository.name} did not arrive whole: try again")
    return here


def _reporting(report: Report, raised: list[Exception], waiting: Silence) -> Any:
    """A progress bar that draws nothing; what `report` raises is kept beside. What comes again is no progress."""
    from tqdm import tqdm

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._furthest = self._so_far = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self._so_far += int(n or 0)
            try:
                self._look()
                report(self._so_far)
            except Exception as error:
                raised.append(error)
                raise

        def _look(self) -> None:
            if self._so_far > self._furthest:
                self._furthest = self._so_far
                waiting.came()
            elif waiting.left <= 0:
                raise Silent

    return Reporting


# ---- how the hub says no -----------------------------------------------------------------------------


@contextmanager
def _explained(kind: Kind, name: str, revision: str, place: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        sentence = _sentence(error)
        if not sentence:  # not the hub's
            raise
        said = {"what": f"{kind} {name}", "revision": revision or "main", "place": place or "such file or folder"}
        other = {"status": _status(error), "first": _first(error), "closed": CLOSED[kind], "instead": INSTEAD[kind]}
        raise HubError(sentence.format(**said, **other)) from error


def _sentence(error: Exception) -> str:
    """What to say of an error, by the first kind that it is of; "" where it is of none."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "this worker's disk has no room for what the hub sends: make some, then try again"
    return next((sentence for kind, sentence in _table(_status(error)) if isinstance(error, kind)), "")


def _table(status: int | None) -> list[tuple[type[Exception], str]]:
    import httpx2  # the hub's client
    from huggingface_hub import errors

    by_status = {
        401: "the hub does not give the {what} to this site (status {status}): {closed}",
        403: "the hub does not give the {what} to this site (status {status}): {closed}",
        404: "the hub has no {what}: check the spelling",
    }
    away = (
        "this worker cannot reach the hub ({first}): see its network, HF_ENDPOINT and HF_HUB_OFFLINE, and try again; "
        "or {instead}"
    )
    return [
        (errors.GatedRepoError, "the {what} is gated, for those who have accepted its terms on the hub: {closed}"),
        (errors.RevisionNotFoundError, "the {what} has no revision {revision}: see its page on the hub"),
        (errors.LocalEntryNotFoundError, away),
        (errors.EntryNotFoundError, "the {what} has no {place} at {revision}: see its files on the hub"),
        (errors.RepositoryNotFoundError, "the hub has no {what}, or it is private: check the spelling; {closed}"),
        (errors.HfHubHTTPError, by_status.get(status or 0, ILL)),
        (Silent, SILENT),
        (httpx2.TimeoutException, SILENT),
        (errors.HFValidationError, "the hub knows no such name: {first}"),
        (httpx2.HTTPError, away),
        (OSError, away),
    ]  # fmt: skip


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
