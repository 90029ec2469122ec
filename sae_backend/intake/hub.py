"""Checkpoints of the Hugging Face hub, by an id such as namespace/name@revision:subfolder; workers download them.

The hub is asked without the server's own token: a stranger must not read what only the site's owner may. HF_ENDPOINT
names another hub or a mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sae_backend.intake.errors import OUT_OF_ROOM, Full, IntakeError, Malformed, TooLarge, Unavailable
from sae_backend.intake.limits import in_words

HUB_ID = re.compile(
    r"(?P<repo>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,199}))?(?::(?P<subfolder>[^:\\\x00]{1,400}))?",
    re.ASCII,
)
WANTED = (".safetensors", ".pt", ".pth", ".npz", ".bin", ".ckpt", ".json", ".yaml", ".yml")
MAX_FILES = 1000
SECONDS = 30.0  # for one answer


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, at a revision, and the folder of it that holds the SAE."""

    repo: str
    revision: str = ""
    subfolder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.subfolder}" if self.subfolder else "")


def parsed(text: str) -> HubId:
    """The id in a person's words, the address of a page on the hub included."""
    plain = re.sub(r"^https?://[^/]+/", "", text.strip())
    if tree := re.fullmatch(r"([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", plain):
        plain = f"{tree[1]}@{tree[2]}" + (f":{tree[3]}" if tree[3] else "")
    found = HUB_ID.fullmatch(plain)
    subfolder = (found["subfolder"] or "").strip("/") if found else ""
    if found is None or any(part in ("", ".", "..") for part in subfolder.split("/") if subfolder):
        raise Malformed(
            f"{text[:80]!r} is no id of the hub; it looks like namespace/name, namespace/name@revision or "
            "namespace/name@revision:folder"
        )
    return HubId(found["repo"], found["revision"] or "", subfolder)


@dataclass(frozen=True)
class Listed:
    """What there is to download."""

    commit: str
    sizes: dict[str, int]  # by path in the repository

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def listing(wanted: HubId, limit: int) -> Listed:
    """The files of an SAE and the commit that they are at; IntakeError where they may not be had."""
    from huggingface_hub import HfApi, RepoFile

    with _explained(wanted):
        api = HfApi(token=False)
        commit = api.repo_info(wanted.repo, revision=wanted.revision or None, timeout=SECONDS).sha
        tree = api.list_repo_tree(wanted.repo, wanted.subfolder or None, recursive=True, revision=commit)
        sizes = {f.path: f.size for f in tree if isinstance(f, RepoFile) and f.path.lower().endswith(WANTED)}
    if not sizes:
        raise IntakeError(f"{wanted} has no weights: name the folder that holds the SAE after a colon")
    if len(sizes) > MAX_FILES:
        raise TooLarge(f"{wanted} has {len(sizes):,} files: name the folder of one SAE after a colon")
    if sum(sizes.values()) > limit:
        raise TooLarge(
            f"{wanted} has {in_words(sum(sizes.values()))}; {in_words(limit)} are allowed here: name the folder of one "
            "SAE after a colon"
        )
    return Listed(str(commit), sizes)


def download(wanted: HubId, listed: Listed, into: Path) -> dict[str, Path]:
    """Bring the listed files into a folder; by their names below the id's subfolder."""
    from huggingface_hub import snapshot_download

    into.mkdir(parents=True, exist_ok=True)
    patterns = [re.sub(r"([*?\[])", r"[\1]", path) for path in listed.sizes]  # which are no patterns
    with _explained(wanted):
        snapshot_download(wanted.repo, revision=listed.commit, allow_patterns=patterns, local_dir=into, token=False)
    for path, size in listed.sizes.items():
        here = into / path
        if not here.is_file() or here.stat().st_size != size:
            raise Unavailable(f"{path} of {wanted} did not arrive whole: try again")
    return {path: into / path for path in listed.sizes}


@contextmanager
def _explained(wanted: HubId) -> Iterator[None]:
    import httpx2  # the hub's client
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise IntakeError(
            f"{wanted.repo} is gated: the hub gives it only to who has accepted its terms. Accept them there, download "
            "it, and upload the files here"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise IntakeError(
            f"{wanted.repo} has no revision {wanted.revision or 'main'}: see its page on the hub"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _away(error) from error
    except errors.EntryNotFoundError as error:
        raise IntakeError(f"{wanted.repo} has no folder {wanted.subfolder}: see its files on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise IntakeError(
            f"the hub has no {wanted.repo}, or it is private: check the name, or upload the files"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _by_status(wanted, error) from error
    except (httpx2.HTTPError, OSError) as error:
        raise _away(error) from error


def _by_status(wanted: HubId, error: Exception) -> IntakeError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return IntakeError(
            f"the hub gives {wanted.repo} only to some (status {status}): download it and upload the files"
        )
    if status == 404:
        return IntakeError(f"the hub has no {wanted}: check the name, the revision and the folder")
    return Unavailable(f"the hub answers with status {status}, which may pass: check this import again in a while")


def _away(error: Exception) -> IntakeError:
    if getattr(error, "errno", None) in OUT_OF_ROOM:
        return Full("the worker has no room for what the hub sends: check this import again once there is some")
    return Unavailable(
        f"the worker cannot reach the hub ({_first(error)}): check its network and HF_ENDPOINT, then check this import "
        "again; or upload the files"
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
