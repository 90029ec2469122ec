"""Checkpoints of the hub: what is downloaded, and the sentence for each way in which it is not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sae_backend import intake, storage
from sae_backend.intake import from_hub, limits
from sae_backend.intake.receiving import folder
from sae_backend.models import Dataset, SaeImport, UploadFile
from sae_backend.pulse import Pulse
from tests import hub
from tests.backend import messages
from tests.backend.imports import SAE, checked, elsewhere, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
FILES = {f"a/{path.name}": path.read_bytes() for path in SAE.iterdir()}


def refusal(hub_id: str) -> str:
    row = checked(intake.open_import(None, hub_id=hub_id))
    assert row.state == SaeImport.State.WAITING and not row.files.exists() and row.report.get("ready") is None
    return row.error


def test_a_folder_of_a_repository_is_downloaded_once_and_checked(online: hub.Hub, dataset: Dataset) -> None:
    others = {"b/other.safetensors": b"x", "a/run.py": b"import os", "a/x.md": b""}
    repo = online.add("model", "me/saes", {**FILES, **others})
    row = checked(intake.open_import(None, hub_id="me/saes:a"))
    assert row.error == "" and row.report["ready"] and row.report["trial"]["state"] == "ok"
    total = sum(map(len, FILES.values()))
    assert row.report["hub"] == {"id": "me/saes:a", "commit": repo.commit, "bytes": total}
    assert {file.name for file in row.files.all()} == set(FILES) and row.name == "me/saes:a 1024"
    asked = len(online.requests)
    row = checked(row)
    assert row.report["ready"] and row.report["hub"]["commit"] == repo.commit and len(online.requests) == asked
    intake.cancel(row)
    assert storage.current().names(folder(row)) == set()


def test_each_way_to_say_no_is_a_sentence_that_says_what_to_do(online: hub.Hub, settings: Any) -> None:
    online.add("model", "me/gated", FILES, gated=True)
    online.add("model", "me/saes", FILES)
    online.add("model", "me/closed", FILES, status=403)
    online.add("model", "me/words", {"README.md": b"words"})
    online.add("model", "me/ill", FILES, status=500)
    assert "is gated" in refusal("me/gated") and "upload the files here" in refusal("me/gated")
    assert "the hub has no repository me/nothing, or it is private" in refusal("me/nothing")
    assert "has no revision nowhere" in refusal("me/saes@nowhere")
    assert "name the folder that holds the SAE" in refusal("me/saes:elsewhere")
    assert "has no weights" in refusal("me/words")
    assert "does not give the repository me/closed to this site (status 403)" in refusal("me/closed")
    assert "status 500, which may pass" in refusal("me/ill")
    settings.UPLOAD_MAX_BYTES = 1000
    assert "1000 bytes are allowed here" in refusal("me/saes")
    settings.UPLOAD_MAX_BYTES, settings.UPLOAD_QUOTA_BYTES = 1 << 30, 1000
    assert "you have 0 bytes here and this would add" in refusal("me/saes")
    settings.UPLOAD_QUOTA_BYTES, settings.UPLOAD_RESERVE_BYTES = 1 << 30, 1 << 60
    assert "free space" in refusal("me/saes") and not UploadFile.objects.exists()


def test_the_sites_own_token_is_never_sent_for_a_stranger(online: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.add("model", "me/gated", FILES, gated=True)
    monkeypatch.setenv("HF_TOKEN", online.token)
    assert "is gated" in refusal("me/gated")


def test_a_hub_that_is_away_is_a_sentence_that_names_the_network(
    online: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "this worker cannot reach the hub" in refusal("me/saes") and "HF_ENDPOINT" in refusal("me/saes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "this worker cannot reach the hub" in refusal("me/saes")


@pytest.mark.parametrize("where", ["tree", "file", "xet"])
def test_a_hub_that_stops_sending_is_given_up_with_a_sentence(
    online: hub.Hub, settings: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", where != "xet")
    settings.HUB_SILENCE_SECONDS = 2.0
    online.add("model", "me/silent", FILES, silent=where)
    assert "the hub has stopped sending anything" in refusal("me/silent:a")
    asked = {"tree": "/api/models/me/silent/tree", "file": "GET /me/silent/resolve", "xet": "/v2/reconstructions"}
    assert any(asked[where] in request for request in online.requests) and not online.over.is_set()
    settings.HUB_SILENCE_SECONDS = 60.0  # a busy machine is no silent hub
    online.add("model", "me/saes", FILES)
    assert {file.name for file in checked(intake.open_import(None, hub_id="me/saes:a")).files.all()} == set(FILES)


def test_files_that_would_be_called_the_same_here_are_refused_and_found_by_their_folder(
    online: hub.Hub, dataset: Dataset
) -> None:
    deep = "a/1/2/3/4/5"
    online.add("model", "me/deep", {f"{n}/{deep}/{path}": data for n in "xy" for path, data in FILES.items()})
    assert "would be called" in refusal("me/deep") and "name the folder of one SAE" in refusal("me/deep")
    assert checked(intake.open_import(None, hub_id=f"me/deep:y/{deep}")).report["trial"]["state"] == "ok"


def test_paths_that_leave_the_folder_hide_or_are_too_long_are_not_downloaded(online: hub.Hub) -> None:
    climbing = ["../up.pt", "a/../../up.pt", "/abs.pt", "a//b.pt", "a\\b.pt"]
    others = [".cache/x.pt", "a/.hidden.pt", "x" * 398 + ".pt", "a\n.pt"]
    online.add("model", "me/evil", {name: b"x" for name in [*climbing, *others, "good.pt"]})
    row = checked(intake.open_import(None, hub_id="me/evil"))
    assert [file.name for file in row.files.all()] == ["good.pt"] and row.report["hub"]["bytes"] == 1


def test_a_download_ends_when_its_import_is_cancelled(
    online: hub.Hub, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WORKER_HEARTBEAT_SECONDS = 0.05
    settings.CHECK_SECONDS = 0.0  # which a download does not count for
    online.add("model", "me/saes", FILES, slow=threading.Event())
    pulses: list[Pulse] = []
    bring = from_hub.bring
    monkeypatch.setattr(from_hub, "bring", lambda row, report: (pulses.append(report.__self__), bring(row, report))[1])
    row = intake.open_import(None, hub_id="me/saes")
    intake.check(row)
    messages.forget()
    with ThreadPoolExecutor(1) as worker:
        done = worker.submit(elsewhere, row.pk)
        until(lambda: any(asked.startswith("GET /me/saes/resolve") for asked in online.requests))
        assert intake.cancel(row)
        until(lambda: pulses[0]._lost.is_set())
        online.repos["model", "me/saes"].slow.set()  # type: ignore[union-attr]
        done.result()
    assert not [asked for asked in online.requests if "safetensors" in asked and "resolve" in asked]
    row.refresh_from_db()
    assert row.state == SaeImport.State.CANCELLED and not row.files.exists()


def test_what_comes_between_a_cancellation_and_the_worker_hearing_of_it_counts_against_nobody(online: hub.Hub) -> None:
    online.add("model", "me/saes", FILES)
    row = intake.open_import(None, hub_id="me/saes:a")
    SaeImport.objects.update(state=SaeImport.State.CHECKING)
    row.refresh_from_db()
    with pytest.raises(intake.IntakeError, match="cancelled"):
        from_hub.bring(row, lambda _: intake.cancel(row) and None)
    assert limits.stored(None) == 0 and not row.files.filter(kept=True).exists()


def test_files_are_not_sent_to_an_import_from_the_hub(online: hub.Hub) -> None:
    with pytest.raises(intake.IntakeError, match="takes no more files"):
        intake.receive(intake.open_import(None, hub_id="me/saes"), "a.pt", SAE / "cfg.json")
