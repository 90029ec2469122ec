"""Bodies that no database takes, at every address that reads one: refused with a sentence."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from sae_backend import intake
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)
NOT_FIELDS, NOT_KEPT = "not a JSON object of fields", "holds what cannot be stored"


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_user("staff", is_staff=True))
    return client


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" * 100_000, NOT_FIELDS),
        ('{"a":' * 100_000, NOT_FIELDS),
        ("[1]", NOT_FIELDS),
        ("\xff", NOT_FIELDS),
        ('{"name": "a\\u0000"}', NOT_KEPT),
        ('{"lm": "\\ud800", "name": "a"}', NOT_KEPT),
        ('{"options": {"file": ["\\u0000"]}}', NOT_KEPT),
        ('{"input_scale": NaN}', NOT_KEPT),
        ('{"\\u0000": 1}', NOT_KEPT),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_sentence_everywhere(staff: Client, body: str, words: str) -> None:
    sae, row = sae_rows.publish().sae, intake.open_import(None)
    for path in (f"/s/{sae.public_id}/rename.json", "/models.json", "/datasets.json", f"/imports/{row.key}/check"):
        answer = staff.post(path, body.encode("latin-1"), content_type="application/json")
        assert answer.status_code in (400, 409) and words in answer.json()["message"], path


def test_a_form_is_refused_alike(staff: Client) -> None:
    answer = staff.post("/models", {"hub": "a/b", "name": "a\0"})
    assert answer.status_code == 409 and NOT_KEPT in answer.content.decode()
