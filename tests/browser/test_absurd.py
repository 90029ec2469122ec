"""Addresses with senseless parameters: an answer that says so or leaves them out, never an error of the server."""

from __future__ import annotations

import pytest
from django.http.response import StreamingHttpResponse
from django.test import Client

from sae_backend.models import Sae
from tests.browser import compare_rows

pytestmark = pytest.mark.django_db(transaction=True)
ODD = ("nan", "1e999", "-1", "9" * 400, "٣", "a\0b", "@r1", f"0.5,{'9' * 40}", "nan,3")
PARAMETERS = {  # of a page: what it reads
    "/search": ("q", "in", "model", "hook", "status", "page"),
    "/frontier": ("metric", "hook", "arch", "d_sae", "sae", "k"),
    "/compare": ("match", "near", "tab", "sort", "after"),
    "/s/{}/pairs": ("side", "below", "above", "sort", "after"),
    "/s/{}": ("class", "sort", "after", "by", "from", "to", "token", "status"),
    "/s/{}/cite": ("sort", "after", "token", "class"),
}
NOWHERE = (
    "/s/{}/pairs/0-0", f"/s/{{}}/pairs/1-{'9' * 22}", f"/s/{{}}/pairs/1-{'9' * 5000}", f"/s/{{}}/{'9' * 20}/training",
    "/s/{}/0/training", "/s/{}@r999999999/pairs", "/s/{}@r1/training", "/s/ffffffffffff/card.png",
    f"/jobs/{'9' * 20}/log", "/compare.csv",
)  # fmt: skip


@pytest.fixture
def pair() -> tuple[Sae, Sae]:
    a, b = compare_rows.saes()
    compare_rows.done(a, b)
    return a, b


def test_senseless_parameters_are_answered(client: Client, pair: tuple[Sae, Sae]) -> None:
    for odd in ODD:
        _answered(client, pair, odd)
    for path in NOWHERE:
        assert client.get(path.format(pair[0].public_id)).status_code == 404, path


def _answered(client: Client, pair: tuple[Sae, Sae], odd: str) -> None:
    refs = {"a": pair[0].public_id, "b": pair[1].public_id}
    for page, names in PARAMETERS.items():
        given = dict.fromkeys(names, odd) | (refs if page == "/compare" else {})
        for how in ("", ".json"):
            response = client.get(page.format(refs["a"]) + how, given)
            assert response.status_code == 200, (page, how)
    for chosen in (refs | {"a": odd}, refs | {"b": odd}, {"sae": [odd, refs["a"]]}):
        assert client.get("/compare", chosen).status_code == 200
        assert client.get("/compare.csv", chosen).status_code == 404


def test_a_name_is_no_formula_to_a_spreadsheet(client: Client, pair: tuple[Sae, Sae]) -> None:
    Sae.objects.filter(pk=pair[0].pk).update(name='=HYPERLINK("https://elsewhere.example")')
    listed = client.get("/saes.csv")
    assert isinstance(listed, StreamingHttpResponse)
    for text in (b"".join(listed).decode(), client.get("/frontier.csv").content.decode()):
        assert ",\"'=HYPERLINK(" in text and ',"=HYPERLINK(' not in text
