"""What an SAE and its run alone decide on a page is drawn once, and again when a row behind it changes."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from sae_backend.models import Run, Sae
from tests.browser import latent_rows, sae_rows
from tests.browser.sae_rows import Stats

pytestmark = pytest.mark.django_db(transaction=True)
PAIRS = "opposing_cos is not null"


@pytest.fixture
def published() -> Stats:
    return sae_rows.publish()


def asked(client: Client, url: str) -> tuple[str, bool]:
    """The page, and whether opposing pairs were looked up for it."""
    with CaptureQueriesContext(connection) as seen:
        page = client.get(url).content.decode()
    return page, any(PAIRS in query["sql"] for query in seen)


def test_charts_and_pairs_are_drawn_once_for_everybody_and_every_table(client: Client, published: Stats) -> None:
    at = f"/s/{published.sae.public_id}"
    page, drawn = asked(client, at)
    assert drawn and 'id="h-o"' in page and 'id="h-d"' in page
    assert asked(client, at) == (page, False)
    user = Client()
    user.force_login(User.objects.create_user("somebody"))
    theirs, drawn = asked(user, f"{at}?sort=-kurtosis")
    assert not drawn and "somebody" in theirs and part(theirs, "h-d") == part(page, "h-d")
    assert "somebody" not in asked(client, at)[0]
    pinned, drawn = asked(client, f"{at}@r{published.run.number}")
    assert drawn and f"{at}@r{published.run.number}/pairs" in pinned


def test_parts_are_drawn_again_when_what_they_show_changes(client: Client, published: Stats) -> None:
    at = f"/s/{published.sae.public_id}"
    before, _ = asked(client, at)
    Run.objects.filter(pk=published.run.pk).update(summary={**published.run.summary, "fvu": 7.6543})
    after, drawn = asked(client, at)
    assert drawn and "7.654" in after and "7.654" not in before
    Sae.objects.filter(pk=published.sae.pk).update(about={"licence": "of its own"})
    assert "of its own" in asked(client, at)[0]


def test_a_latents_page_names_nobody_else_and_follows_its_sae_and_address(client: Client) -> None:
    published = latent_rows.publish()
    user = Client()
    user.force_login(User.objects.create_user("somebody"))
    theirs = user.get(published.url(latent_rows.ALIVE, "?int=b3&ws=1")).content.decode()
    page = client.get(published.url(latent_rows.ALIVE)).content.decode()
    assert "somebody" in theirs and "somebody" not in page and "ws=1" not in navigation(page)
    assert "ws=1" in navigation(theirs)
    other = client.get(published.url(latent_rows.RARE)).content.decode()
    assert all(f'value="{i}"' in navigation(x) for i, x in ((latent_rows.ALIVE, page), (latent_rows.RARE, other)))
    pinned = client.get(f"/s/{published.sae.public_id}@r{published.run.number}/{latent_rows.ALIVE}").content.decode()
    assert f"@r{published.run.number}" in navigation(pinned) and "@r" not in navigation(page)
    Sae.objects.filter(pk=published.sae.pk).update(name="called anew")
    assert "called anew" in navigation(client.get(published.url(latent_rows.ALIVE)).content.decode())


def navigation(page: str) -> str:
    """Breadcrumbs and steps, of which most is kept."""
    return page.partition('aria-label="Breadcrumb"')[2].partition("</form>")[0]


def part(page: str, heading: str) -> str:
    return page.partition(f'id="{heading}"')[2].partition("</section>")[0]
