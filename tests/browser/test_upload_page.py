"""The page of an import in each of its states: what it says, what it offers, and to whom."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from sae_backend.models import Run, SaeImport, UploadFile
from tests.backend import messages
from tests.browser import run_rows, sae_rows

pytestmark = pytest.mark.django_db(transaction=True)
DETECTED = {
    "format": "saelens", "format_title": "SAELens", "architecture": "topk", "d_in": 16, "d_out": 16, "d_sae": 300,
    "k": 8, "dtype": "float32", "hook_name": "blocks.1.hook_resid_post", "hook_name_out": None, "lm_name": "gpt2-small",
    "normalisation": "none", "questions": [], "notes": ["b_dec is far from the mean."],
}  # fmt: skip
WRONGLY = "FVU 0.93: probably read wrongly."
TRIAL = {"tokens": 4096, "l0": 8.0, "fvu": 0.93, "silent": 0.2, "state": "fail", "text": WRONGLY}


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def member(client: Client, ada: User) -> Client:
    client.force_login(ada)
    return client


def an_import(owner: User | None = None, state: str = "waiting", **fields: Any) -> SaeImport:
    lm = sae_rows.language_model()
    row = SaeImport.objects.create(name="mine", lm=lm, owner=owner, state=state, **fields)
    UploadFile.objects.create(of=row, name="ae <b>.pt", size=2000, received=2000, complete=True)
    return row


def report(row: SaeImport, **more: Any) -> dict[str, Any]:
    checks = [{"name": "shapes", "state": "ok", "text": "300 latents."}]
    known = {"detected": DETECTED, "checks": checks, "questions": [], "lm": row.lm_id, "options": row.options}
    return {**known, "here": None, "ready": True, **more}


def text(client: Client, row: SaeImport | None = None, query: str = "") -> str:
    response = client.get(f"/imports/{row.key}{query}" if row else "/upload")
    assert response.status_code == 200
    return response.content.decode()


def test_whoever_may_not_upload_is_told_and_sees_no_field_for_files(client: Client, member: Client, ada: User) -> None:
    page = text(Client())
    assert "Uploading is for people with an account" in page and "type=\"file\"" not in page and ">Files<" not in page
    assert 'type="file"' in text(member)


def test_a_site_without_a_language_model_says_so(member: Client) -> None:
    assert "No language model is here yet" in text(member)
    sae_rows.language_model()
    assert "No language model is here yet" not in text(member)


def test_what_was_begun_and_not_finished_is_listed_to_who_began_it(member: Client, ada: User) -> None:
    mine, other = an_import(ada), an_import(User.objects.create_user("eve"))
    page = text(member)
    assert f"/imports/{mine.key}" in page and f"/imports/{other.key}" not in page


def test_the_report_is_in_words_and_the_form_has_what_was_detected(member: Client, ada: User) -> None:
    row = an_import(ada)
    row.report = report(row, trial=TRIAL)
    row.save()
    page = text(member, row)
    assert "Passed: </span>Shapes" in page and "Failed: </span>Trial run" in page and "Warning: </span>Note" in page
    assert "L0 8.0, FVU 0.930. Probably read wrongly." in page and "1 passed" not in page.split("Checks")[0]
    assert "It can be computed all the same" in page and 'formaction="/imports/' in page
    assert 'placeholder="blocks.1.hook_resid_post"' in page and "TopK: the k largest of each token (detected)" in page
    assert "ae &lt;b&gt;.pt" in page and "ae <b>.pt" not in page


def test_an_open_question_is_seen_before_all_else_and_nothing_can_be_computed(member: Client, ada: User) -> None:
    row = an_import(ada, error="give it, and check again")
    asked = {"field": "hook_name", "text": "Which hook point?", "required": True, "default": None, "choices": []}
    row.report = report(row, questions=[asked], ready=False)
    row.save()
    page = text(member, row)
    assert page.index("Which hook point?") < page.index("Passed: </span>Shapes")
    assert "Give it, and check again" in page and 'role="alert"' in page and "/start" not in page


def test_names_of_a_strangers_files_in_a_question_are_text(member: Client, ada: User) -> None:
    row = an_import(ada)
    name = "<button formaction=/x>.pt"
    asked = {"field": "file", "text": f"There are 2 checkpoints here ({name})", "required": True, "default": None}
    row.report = report(row, ready=False, questions=[{**asked, "choices": [[name, name]]}])
    row.save()
    page = text(member, row)
    assert page.count("&lt;button formaction=/x&gt;.pt") == 4 and "<button formaction" not in page


def test_checks_have_their_figures_and_the_activation_function_is_one_of_them(member: Client, ada: User) -> None:
    row = an_import(ada)
    checks = [{"name": "shapes", "state": "ok", "text": "W_enc", "figure": "19 × d_in"}]
    row.report = report(row, checks=checks, trial={**TRIAL, "seconds": 1.8})
    row.save()
    page = text(member, row)
    for words in ("19 × d_in</span>", "k 8</span>", "1.8 s</span>", "TopK: the k largest of each token</span>"):
        assert words in page
    assert "Who can see it" in page and "only ada and staff may change it" in page


def test_only_what_was_checked_can_be_computed(member: Client, ada: User) -> None:
    row = an_import(ada, options={"k": 16})
    row.report = report(row)
    row.save()
    button = re.compile(r"data-go( disabled)?>")
    assert button.search(text(member, row))[0] == "data-go>"  # type: ignore[index]
    assert f"{{&quot;lm&quot;: {row.lm_id}, &quot;k&quot;: 16}}" in text(member, row)
    SaeImport.objects.filter(pk=row.pk).update(options={"k": 17})
    page = text(member, row)
    assert button.search(page)[0] == "data-go disabled>" and "check it again to compute it so" in page  # type: ignore[index]


@pytest.mark.parametrize(
    ("error", "place"),
    [
        ("no language model here has blocks.9.hook_resid_post with a width of 64: add it", "/models#add"),
        ("the files do not say which hook point this SAE reads: give it, and check again", "#u-hook_name"),
    ],
)
def test_what_a_check_lacks_leads_to_where_it_is_added(member: Client, ada: User, error: str, place: str) -> None:
    row = an_import(ada, error=error)
    note = text(member, row).partition('role="alert"')[2].partition("</div></div>")[0]
    assert f'href="{place}"' in note
    assert f'href="{place}"' not in text(Client(), row).partition('role="alert"')[2].partition("</div></div>")[0]


def test_weights_that_are_here_lead_to_their_page(member: Client, ada: User) -> None:
    live = sae_rows.publish()
    row = an_import(ada)
    here = {"public_id": live.sae.public_id, "name": live.sae.name, "lm": "gpt2-small"}
    row.report = report(row, here=here)
    row.save()
    page = text(member, row)
    assert f'href="/s/{live.sae.public_id}"' in page and "computing adds a run" in page and "of its own" not in page
    SaeImport.objects.filter(pk=row.pk).update(report=report(row, here={**here, "aside": True}))
    assert "adds a run to it, at an address of its own: somebody else brought it in" in text(member, row)


def test_a_run_that_stands_beside_is_not_called_superseded(client: Client) -> None:
    first = sae_rows.publish()
    sae_rows.publish(first.sae, seed=1)
    address = f"/s/{first.sae.public_id}@r1"
    assert "Superseded run" in client.get(address).content.decode()
    Run.objects.filter(pk=first.run.pk).update(aside=True)
    page = client.get(address).content.decode()
    assert "Run beside the SAE" in page and "Superseded" not in page
    assert client.get(f"/jobs/{first.run.pk}.json").json()["pages"] == address
    assert f'id="open" href="{address}"' in client.get(f"/jobs/{first.run.pk}").content.decode()


def test_how_long_it_takes_is_told_by_an_earlier_run(member: Client, ada: User) -> None:
    run_rows.published()  # 0.5 seconds a token, 0.1 a latent, 6 to publish
    row = an_import(ada)
    row.dataset = sae_rows.dataset(row.lm)
    row.report = report(row)
    row.save()
    assert "Compute, about 1 min" in text(member, row)
    seconds = member.get(f"/imports/{row.key}.json").json()["seconds"]
    assert seconds == pytest.approx(64 * 0.5 + 300 * 0.1 + 6, rel=0.01)
    page = text(member, row)
    takes = re.findall(r"<dt>(\w+) .*?<dd>(.*?)</dd>", page)
    assert takes == [("Contexts", "35 s"), ("Latents", "30 s"), ("Publish", "10 s")]


def test_what_waits_says_whether_for_a_choice_or_for_something_better(member: Client, ada: User) -> None:
    row, refused, wrong = (an_import(ada, error=error) for error in ("", "it would run code", "there is no such hook"))
    for each in (row, wrong):
        each.report = report(each, identity="0123456789ab")
        each.save()
    for each, said in ((row, "waits for a choice"), (refused, "Not readable"), (wrong, "Needs a correction")):
        assert said in text(member, each) and said in member.get("/jobs").content.decode()
    assert "waits for a choice" not in text(member, refused) + text(member, wrong)
    assert "It will live at" in text(member, row) and "/s/0123456789ab" in text(member, row)


@pytest.mark.parametrize("state", ["checking", "queued", "running"])
def test_while_a_worker_has_it_the_page_follows_with_and_without_scripts(
    member: Client, ada: User, state: str
) -> None:
    row = an_import(ada, state)
    page = text(member, row)
    assert f'data-poll="/imports/{row.key}/live?state={state}"' in page and 'http-equiv="refresh"' in page
    assert "<fieldset disabled>" in page and 'type="file"' not in page
    part = member.get(f"/imports/{row.key}/live?state={state}").content.decode()
    assert "data-poll" in part and "data-reload" not in part
    SaeImport.objects.filter(pk=row.pk).update(state="waiting")
    part = member.get(f"/imports/{row.key}/live?state={state}").content.decode()
    assert "data-reload" in part and "data-poll" not in part


def test_one_that_no_worker_takes_says_what_to_do(member: Client, ada: User) -> None:
    row = an_import(ada, "checking", heartbeat_at=run_rows.ago(3600))
    assert "start one: <code>make worker</code>" in text(member, row)
    SaeImport.objects.filter(pk=row.pk).update(tries=1)
    assert "A worker reads the files" in text(member, row)


def test_one_that_is_done_leads_to_its_job_or_shows_how_it_was_read(member: Client, ada: User) -> None:
    live = sae_rows.publish()
    row = an_import(ada, "done", sae=live.sae, run=live.run)
    assert member.get(f"/imports/{row.key}")["Location"] == f"/jobs/{live.run.pk}"
    assert f'href="/s/{live.sae.public_id}"' in text(member, row, "?look")
    SaeImport.objects.filter(pk=row.pk).update(run=None)
    assert "No run was asked for" in text(member, row)
    SaeImport.objects.filter(pk=row.pk).update(sae=None)
    assert "the SAE was deleted since" in text(member, row)


def test_a_failed_one_keeps_its_choices_and_can_be_checked_again(member: Client, ada: User) -> None:
    row = an_import(ada, "failed", error="the disk is full; free 3 GB", options={"hook_name": "blocks.1.hook_mlp_out"})
    page = text(member, row)
    assert "The disk is full; free 3 GB" in page and 'value="blocks.1.hook_mlp_out"' in page
    assert re.search(r'action="/imports/[^"]+/check"', page) and "disabled" not in page.split("data-check")[1][:20]


def test_a_refused_wish_shows_the_page_with_the_reason(member: Client, ada: User) -> None:
    messages.forget()
    row = an_import(ada, "receiving")
    UploadFile.objects.filter(of=row).update(complete=False)
    response = member.post(f"/imports/{row.key}/check", {"name": "x"})
    page = response.content.decode()
    assert response.status_code == 409 and "has not arrived yet" in page and "Read as" in page
    assert messages.take() is None


def test_what_is_typed_is_saved_before_any_check(member: Client, ada: User) -> None:
    row = an_import(ada, "receiving")
    member.post(f"/imports/{row.key}/save", {"name": "typed", "hook_name": "blocks.0.hook_mlp_out", "k": ""})
    page = text(member, row)
    assert 'value="typed"' in page and 'value="blocks.0.hook_mlp_out"' in page


def test_a_step_of_training_stands_in_the_form_where_names_tell_it(member: Client, ada: User) -> None:
    row = an_import(ada, "receiving")
    assert '<details class="more"><summary>A checkpoint in training' in text(member, row)
    UploadFile.objects.filter(of=row).update(name="topk_ckpts/step_500.pt")
    page = text(member, row)
    assert '<details class="more" open><summary>A checkpoint in training' in page
    assert re.search(r'name="series"[^>]* placeholder="topk"', page) and 'placeholder="500"' in page
    member.post(f"/imports/{row.key}/save", {"series": "mine", "step": "600"})
    page = text(member, row)
    assert re.search(r'name="series" value="mine"', page) and re.search(r'name="step" value="600"', page)
    member.post(f"/imports/{row.key}/save", {"series": "", "step": ""})
    row.refresh_from_db()
    assert (row.series, row.step) == ("", None)


def test_half_of_a_step_is_saved_but_not_checked(member: Client, ada: User) -> None:
    row = an_import(ada, "receiving")
    assert member.post(f"/imports/{row.key}/save", {"series": "mine"}).status_code == 302
    refused = member.post(f"/imports/{row.key}/check", {"series": "mine", "step": ""})
    assert refused.status_code == 400 and "Give the step too" in refused.content.decode()


def test_anothers_import_can_be_looked_at_and_not_changed(member: Client) -> None:
    row = an_import(User.objects.create_user("eve"))
    page = text(member, row)
    assert "<fieldset disabled>" in page and 'type="file"' not in page and "/cancel" not in page


def test_an_import_that_is_not_there_is_not_found(member: Client) -> None:
    assert member.get("/imports/00000000-0000-0000-0000-000000000000").status_code == 404
