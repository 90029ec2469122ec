"""Language models and text of the Hugging Face hub, or of a mirror that HF_ENDPOINT names: looked at, then downloaded.

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

SECONDS = 30.0  # for one answer
MOST_FILES = 200_000
_NAME = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)
Report = Callable[[int], None]


class HubError(Exception):
    """What the hub does not give, with a sentence that says what to do."""


@dataclass(frozen=True)
class Repository:
    """What a repository holds at one commit."""

    kind: Literal["model", "dataset"]
    name: str
    commit: str
    files: dict[str, int]  # bytes, by path
    token: bool

    @property
    def what(self) -> str:
        return f"{self.kind} {self.name}"


def look(kind: Literal["model", "dataset"], name: str, revision: str = "", token: bool = True) -> Repository:
    """Ask for a repository's files at a branch, tag or commit."""
    check_name(name, revision)
    from huggingface_hub import HfApi, RepoFile

    with _explained(kind, name, revision):
        api = HfApi(token=None if token else False)
        commit = str(api.repo_info(name, revision=revision or None, timeout=SECONDS, repo_type=kind).sha)
        files: dict[str, int] = {}
        for entry in api.list_repo_tree(name, recursive=True, revision=commit, repo_type=kind):
            if isinstance(entry, RepoFile) and _harmless(entry.path):
                files[entry.path] = int(entry.size or 0)
            if len(files) > MOST_FILES:
                raise HubError(f"the {kind} {name} has more than {MOST_FILES:,} files: choose a smaller one")
    return Repository(kind, name, commit, files, token)


def check_name(name: str, revision: str = "") -> None:
    """Refuse what cannot be on the hub, without asking it."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise HubError(f"{name[:100]!r} is no name on the hub: it looks like namespace/name, say openai-community/gpt2")
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(f"{revision[:100]!r} is no branch, tag or commit on the hub")


def _harmless(path: str) -> bool:
    """A path that stays inside the folder it is downloaded into; the hub is not trusted to give no others."""
    parts = path.split("/")
    return len(path) < 500 and path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts)


def fetch(repository: Repository, path: str, report: Report = lambda _: None, into: Path | None = None) -> Path:
    """Download one file, into the cache that language models are loaded from, or a folder; `report` takes its bytes."""
    from huggingface_hub import hf_hub_download

    with _explained(repository.kind, repository.name, repository.commit):
        return Path(
            hf_hub_download(
                repository.name, path, repo_type=repository.kind, revision=repository.commit, local_dir=into,
                token=None if repository.token else False, tqdm_class=_reporting(report),
            )
        )  # fmt: skip


def _reporting(report: Report) -> Any:
    """A progress bar that draws nothing; what `report` raises ends the download."""
    from tqdm import tqdm

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._so_far = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self._so_far += int(n or 0)
            report(self._so_far)

    return Reporting


@contextmanager
def _explained(kind: str, name: str, revision: str) -> Iterator[None]:
    """Each way in which the hub says no, as a sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"the {kind} {name} is gated: accept its terms on the hub, and give the workers, as HF_TOKEN, a token of "
            "the account that did; staff of this site may then add it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"the {kind} {name} has no revision {revision or 'main'}: see its page on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise _away(error) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"a file of the {kind} {name} is gone from the hub: {_first(error)}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no {kind} {name}, or it is private: check the spelling; for a private one the workers need a "
            "token that may read it, as HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _by_status(kind, name, error) from error
    except errors.HFValidationError as error:
        raise HubError(f"the hub knows no such name: {_first(error)}") from error
    except (errors.OfflineModeIsEnabled, OSError) as error:
        raise _away(error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] .startswith(("httpx", "httpcore")):
            raise _away(error) from error
        raise


def _by_status(kind: str, name: str, error: Exception) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return HubError(
            f"the hub does not give the {kind} {name} to this site (status {status}): it is private or gated; the "
            "workers need a token that may read it, as HF_TOKEN"
        )
    if status == 404:
        return HubError(f"the hub has no {kind} {name}: check the spelling")
    return HubError(f"the hub answers with status {status}, which may pass: try again in a while")


def _away(error: Exception) -> HubError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return HubError("this worker's disk has no room for what the hub sends: make some, then try again")
    return HubError(
        f"this worker cannot reach the hub ({_first(error)}): see its network, HF_ENDPOINT and HF_HUB_OFFLINE, and try "
        "again; or give a folder of the server's"
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
