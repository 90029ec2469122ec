"""What belongs to the whole site: health, the jump box, headers, caching, the shell of every page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.test.utils import CaptureQueriesContext

from browser.templatetags import latent_tags as tags
from browser.views import site
from tests.browser import sae_rows
from tests.browser.sae_rows import Stats

ROOT = Path(settings.BASE_DIR)


@pytest.fixture
def published(transactional_db: None) -> Stats:
    return sae_rows.publish()


@pytest.mark.django_db
def test_health_needs_every_migration(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_migrated", False)
    [latest] = MigrationLoader(connection).graph.leaf_nodes("sae_backend")
    MigrationRecorder(connection).record_unapplied(*latest)
    response = client.get("/healthz")
    assert response.status_code == 503 and b"migrate" in response.content
    MigrationRecorder(connection).record_applied(*latest)
    assert client.get("/healthz").content == b"ok"
    with CaptureQueriesContext(connection) as seen:
        assert client.get("/healthz").status_code == 200
    assert len(seen) == 1  # the migrations are not looked for again


def test_health_needs_the_database(client: Client) -> None:
    """Without the mark that allows it, pytest-django forbids the database as an outage would."""
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        client.get("/healthz")


@pytest.mark.parametrize("words", ["17", " 17 ", "#17", "1 7", "17,"])
def test_the_jump_box_reads_an_index_on_the_pages_sae(client: Client, words: str, db: None) -> None:
    sae = sae_rows.new_sae()
    response = client.get("/go", {"q": words, "on": f"{sae.public_id}@r3"})
    assert response.status_code == 302 and response["Location"] == f"/s/{sae.public_id}@r3/17"


@pytest.mark.django_db
def test_the_jump_box_reads_ids_names_and_addresses(client: Client) -> None:
    sae = sae_rows.new_sae("TopK 32, wide", slug="topk-32-wide", sha256="7f3a9c2e41aa" + "0" * 52)
    for words, target in {
        "7f3a9c": "/s/7f3a9c",
        "7F3A9C2E41AA/17342": "/s/7f3a9c2e41aa/17342",
        "sae:7f3a9c2e41aa@r3/5": "/s/7f3a9c2e41aa@r3/5",
        "/s/7f3a9c2e41aa/5": "/s/7f3a9c2e41aa/5",
        "topk-32-wide": f"/s/{sae.public_id}",
        "topk-32-wide/12": f"/s/{sae.public_id}/12",
        "TopK 32, wide": f"/s/{sae.public_id}",
        "wide 1 204": f"/s/{sae.public_id}/1204",
        "http://testserver/s/7f3a9c2e41aa/5?int=b3#x": "/s/7f3a9c2e41aa/5?int=b3#x",
    }.items():
        response = client.get("/go", {"q": words})
        assert response.status_code == 302 and response["Location"] == target, words


@pytest.mark.django_db
def test_the_jump_box_searches_for_what_is_no_address(client: Client) -> None:
    sae_rows.new_sae("one moon", slug="one-moon")
    sae_rows.new_sae("two moons", slug="two-moons")
    for words, said in {
        "": "Latents by a token",
        "17": "of which SAE?",
        "moon": "two moons",
        "decade": "Nothing here is called",  # of hexadecimal digits alone
        "<script>": "“&lt;script&gt;”",
        "http://elsewhere.example/s/7f3a9c/5": "Nothing here is called",
        "http://[": "Nothing here is called",
    }.items():
        response = client.get("/go", {"q": words}, follow=True)
        assert response.redirect_chain[0][0].startswith("/search"), words
        assert response.status_code == 200 and said in response.content.decode(), words


@pytest.mark.django_db
def test_a_name_leads_to_the_identity(client: Client) -> None:
    sae = sae_rows.new_sae()
    assert client.get(f"/s/{sae.slug}")["Location"] == f"/s/{sae.public_id}"


@pytest.mark.django_db
def test_a_name_leads_to_whatever_of_the_sae_is_asked_for(client: Client) -> None:
    sae = sae_rows.new_sae()
    for rest in ("/5", "/5.json", ".json", "/latents.csv", "/random", "/5?int=b3&ws=1", ".json?x=1"):
        response = client.get(f"/s/{sae.slug}{rest}")
        assert response.status_code == 302 and response["Location"] == f"/s/{sae.public_id}{rest}", rest
    assert client.get("/s/no-such-name/5").status_code == 404
    assert client.get(f"/s/{sae.slug}/nonsense", follow=True).status_code == 404


@pytest.mark.django_db
def test_a_slash_too_many_is_taken_away(client: Client) -> None:
    sae = sae_rows.new_sae()
    for rest in (f"{sae.public_id}/?sort=index", f"{sae.public_id}/7/", f"{sae.public_id}@r2/7/"):
        response = client.get(f"/s/{rest}")
        assert response.status_code == 302 and response["Location"] == f"/s/{rest.replace('/?', '?').rstrip('/')}", rest
    for rest in (f"{sae.slug}/", f"{sae.slug}/7/"):
        target = f"/s/{rest.replace(sae.slug, sae.public_id).rstrip('/')}"
        assert client.get(f"/s/{rest}")["Location"] == target, rest


def test_a_page_of_a_run_is_not_sent_twice(client: Client, published: Stats) -> None:
    for rest in ("", "?sort=density", ".json", "/scatter.json", "/latents.json"):
        url = f"/s/{published.sae.public_id}{rest}"
        etag = client.get(url)["ETag"]
        again = client.get(url, headers={"if-none-match": etag})
        assert again.status_code == 304 and not again.content, url
    published.sae.name = "renamed"
    published.sae.save()
    assert client.get(url, headers={"if-none-match": etag}).status_code == 200
    sae_rows.new_run(published.sae)
    page = f"/s/{published.sae.public_id}"
    before = client.get(page)["ETag"]
    sae_rows.publish(published.sae, seed=1)
    assert client.get(page, headers={"if-none-match": before}).status_code == 200


def test_every_page_forbids_foreign_scripts_and_has_none_inline(client: Client, published: Stats) -> None:
    for url in (
        "/",
        "/jobs",
        f"/jobs/{published.run.pk}",
        f"/s/{published.sae.public_id}",
        "/nope",
        "/go?q=x",
    ):
        response = client.get(url)
        policy = response["Content-Security-Policy"]
        assert "script-src 'self';" in policy and "frame-ancestors 'none'" in policy and "unsafe-eval" not in policy
        page = response.content.decode()
        assert re.findall(r"<script(?![^>]* src=)[^>]*>", page) == [], url
        assert re.findall(r"\son\w+=", page) == [], url


class _Outline(HTMLParser):
    """Ids, headings and open elements of a page."""

    VOID = {"meta", "link", "input", "br", "img", "hr", "col", "path", "circle", "rect", "line", "polyline"}

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.h1 = 0
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.h1 += tag == "h1"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_every_page_is_well_formed_with_one_heading_and_unique_ids(client: Client, published: Stats) -> None:
    sae = sae_rows.new_sae("waits", slug="waits")
    sae_rows.start(sae_rows.new_run(sae))
    latents = f"/s/{published.sae.public_id}"
    urls = [
        "/",
        "/jobs",
        f"/jobs/{published.run.pk}",
        latents,
        f"{latents}?status=dead",
        f"/s/{sae.public_id}",
        "/x",
    ]
    for url in urls:
        outline = _Outline()
        outline.feed(client.get(url).content.decode())
        assert outline.h1 == 1 and not outline.wrong and not outline.open, (url, outline.wrong, outline.open)
        assert len(outline.ids) == len(set(outline.ids)), url


def test_every_static_file_that_a_template_names_is_there() -> None:
    for template in (ROOT / "templates").rglob("*.html"):
        for name in re.findall(r"{% static '([^']+)' %}", template.read_text()):
            assert finders.find(name), f"{template.name} names {name}"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (tags.thousands(24576), "24\u202f576"), (tags.thousands(-1200), "−1\u202f200"),
        (tags.thousands(None), "—"),
        (tags.density(2.14e-4), "2.1e-4"), (tags.density(0), "0"), (tags.density(1.0), "1.0e0"),
        (tags.compact(48.21), "48.2"), (tags.compact(0.1049), "0.105"), (tags.compact(63100), "6.3e4"),
        (tags.compact(-1.2e-5), "−1.2e-5"), (tags.compact(1203.6), "1\u202f204"),
        (tags.compact(float("nan")), "—"),
        (tags.fixed(-0.984), "−0.98"), (tags.fixed(-0.001), "0.00"), (tags.percent(0.979), "97.9\u202f%"),
        (tags.count(10_000_000), "10.0\u202fM"), (tags.count(24576), "24.6\u202fk"), (tags.count(850), "850"),
        (tags.duration(185), "3:05"), (tags.duration(0.42), "0.4 s"), (tags.duration(4800), "1 h 20"),
        (tags.remaining(961), "16 min"), (tags.remaining(31), "35 s"), (tags.remaining(None), ""),
        (tags.log_share(1e-7), "0"), (tags.log_share(1.0), "100"), (tags.share(-0.5, 1), "50"),
        (tags.bars([]), ""), (tags.bars([0, 2]), "M50.00 100v-100.0h45.00v100.0z"),
    ],
)  # fmt: skip
def test_numbers_are_printed_for_people(printed: str, expected: str) -> None:
    assert printed == expected


@pytest.mark.django_db
def test_a_nul_in_the_jump_box_is_no_error(client: Client) -> None:
    assert client.get("/go", {"q": "\0nothing"})["Location"] == "/search?q=nothing"


@pytest.mark.django_db
@pytest.mark.parametrize("words", ["9" * 5000, "a" + "/" * 145 + " " * 145 + "b", "a" + "/" * 9000 + " " * 9000 + "b"])
def test_the_jump_box_is_not_kept_busy_by_long_words(client: Client, words: str) -> None:
    """Neither a number that Python does not read, nor a row of signs that may be cut in as many ways as there are."""
    sae = sae_rows.new_sae()
    response = client.get("/go", {"q": words, "on": sae.public_id})
    assert response["Location"].startswith("/search?q=") and client.get(response["Location"]).status_code == 200
