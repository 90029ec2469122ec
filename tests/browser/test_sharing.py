"""What is passed on of a latent: citation, embed, picture, oEmbed; and that whoever shares a run keeps it."""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import Any

import pytest
from django.test import Client
from PIL import Image

from browser import accounts, card
from sae_backend import managing
from sae_backend.models import Run, Sae
from tests.browser.latent_rows import ALIVE, DEAD, Published, publish

pytestmark = pytest.mark.django_db
NASTY = 'x</title><script>alert("1")</script> {50% of $k_2}\\'


@pytest.fixture
def published() -> Published:
    return publish()


def pinned(published: Published, index: int, rest: str = "") -> str:
    return f"/s/{published.sae.public_id}@r3/{index}{rest}"


def rename(published: Published, name: str) -> None:
    Sae.objects.filter(pk=published.sae.pk).update(name=name)


def test_a_citation_names_the_run_and_keeps_the_view(client: Client, published: Published) -> None:
    said = client.get(published.url(ALIVE, "/cite.json?int=b3&unknown=1")).json()
    assert said["url"] == f"http://testserver{pinned(published, ALIVE)}?int=b3"
    assert said["id"] == f"sae:{published.sae.public_id}@r3/{ALIVE}"
    assert said["bibtex"].startswith(f"@misc{{sae-{published.sae.public_id}-{ALIVE},\n  title = {{Latent {ALIVE} of")
    assert f"  url   = {{{said['url']}}}" in said["bibtex"]
    assert re.search(r"  date  = \{\d{4}-\d\d-\d\d\}", said["bibtex"])
    assert "Run r3 on moonlight, 1,000,000 tokens" in said["bibtex"] and said["plain"].endswith(said["url"])
    page = client.get(published.url(ALIVE, "/cite?int=b3")).content.decode()
    assert said["url"] in page and "&lt;iframe src=" in page and "<iframe" not in page


def test_an_sae_is_cited_with_its_run_and_the_order_of_its_table(client: Client, published: Published) -> None:
    said = client.post(f"/s/{published.sae.public_id}/cite.json?sort=-kurtosis&nonsense=1").json()
    assert said["url"] == f"http://testserver/s/{published.sae.public_id}@r3?sort=-kurtosis"
    assert said["id"] == f"sae:{published.sae.public_id}@r3" and "embed" not in said and shared(published)
    assert said["bibtex"].startswith(f"@misc{{sae-{published.sae.public_id},\n  title = {{Sparse autoencoder sae:")
    page = client.get(f"/s/{published.sae.public_id}/cite").content.decode()
    assert "Cite this SAE" in page and "iframe" not in page and f'/s/{published.sae.public_id}@r3' in page
    assert client.get("/s/abcdef123456/cite").status_code == 404
    home = client.get(f"/s/{published.sae.public_id}").content.decode()
    assert f'href="/s/{published.sae.public_id}/cite" rel="nofollow" data-cite' in home


def test_a_name_breaks_neither_bibtex_nor_pages(client: Client, published: Published) -> None:
    rename(published, NASTY)
    said = client.get(published.url(ALIVE, "/cite.json")).json()
    assert said["bibtex"].count("{") == said["bibtex"].count("}")
    assert r"\textbraceleft{}50\% of \$k\_2\textbraceright{}\textbackslash{}" in said["bibtex"]
    for rest in ("", "/cite", "/embed"):
        assert "<script>alert" not in client.get(published.url(ALIVE, rest)).content.decode(), rest
    assert '"1"' not in re.findall(r'title="([^>]*)" width', said["html"])[0]


def test_an_embed_has_no_script_and_may_stand_in_any_frame(client: Client, published: Published) -> None:
    response = client.get(pinned(published, ALIVE, "/embed?int=b3"))
    page, policy = response.content.decode(), response["Content-Security-Policy"]
    assert re.search(r'class="axis".*<span>0</span><span>activation</span><span>\d+\.\d</span>', page)
    assert "<script" not in page.lower() and page.count('<li class="ctx"') == 5 and 'data-band="b3"' in page
    assert "default-src 'none'" in policy and "script-src" not in policy and "frame-ancestors *" in policy
    assert "X-Frame-Options" not in response and "Cookie" not in response.get("Vary", "")
    assert all('target="_blank" rel="noopener"' in link for link in re.findall(r"<a [^>]*>", page))
    for rest in ("", "/cite"):
        other = client.get(pinned(published, ALIVE, rest))
        assert other["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in other["Content-Security-Policy"]


def test_a_site_says_who_may_embed_its_latents(client: Client, published: Published, settings: object) -> None:
    settings.EMBED_FRAME_ANCESTORS = ["https://wiki.example", "'self'"]  # type: ignore[attr-defined]
    policy = client.get(pinned(published, ALIVE, "/embed"))["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors https://wiki.example 'self'")


def test_an_embed_of_nothing_says_so_in_its_frame(client: Client, published: Published) -> None:
    response = client.get(published.url(999, "/embed"))
    assert response.status_code == 404 and b"numbered 0 to 23" in response.content
    assert "X-Frame-Options" not in response and "frame-ancestors *" in response["Content-Security-Policy"]
    managing.share(published.run)
    Run.objects.filter(pk=published.run.pk).update(state=Run.State.DROPPED)
    gone = client.get(pinned(published, ALIVE, "/embed"))
    assert gone.status_code == 410 and b"was dropped" in gone.content


@pytest.mark.parametrize("index", [ALIVE, DEAD])
def test_a_card_is_a_picture_of_the_size_that_is_asked_for(
    client: Client, published: Published, index: int
) -> None:
    response = client.get(pinned(published, index, "/card.png"))
    image = Image.open(BytesIO(response.content))
    assert response["Content-Type"] == "image/png" and image.size == (card.WIDTH, card.HEIGHT)
    assert len(image.getcolors(1 << 20) or []) > 20
    page = client.get(published.url(index)).content.decode()
    (url,) = re.findall(r'<meta property="og:image" content="([^"]*)">', page)
    assert url.startswith(f"http://testserver{pinned(published, index, '/card.png')}?v=")
    assert client.get(url)["Cache-Control"] == "public, max-age=31536000, immutable"
    assert client.get(published.url(999, "/card.png")).status_code == 404


def test_an_sae_has_a_card_too(client: Client, published: Published) -> None:
    page = client.get(f"/s/{published.sae.public_id}").content.decode()
    (url,) = re.findall(r'<meta property="og:image" content="([^"]*)">', page)
    assert url.startswith(f"http://testserver/s/{published.sae.public_id}@r3/card.png?v=")
    response = client.get(url)
    assert Image.open(BytesIO(response.content)).size == (card.WIDTH, card.HEIGHT) and not shared(published)
    assert response["Cache-Control"] == "public, max-age=31536000, immutable"
    rename(published, "月 two\nlines " + "long " * 30)
    again = client.get(f"/s/{published.sae.public_id}/card.png")
    assert again.status_code == 200 and again.content != response.content


def test_whoever_asks_for_a_card_while_others_are_drawn_is_told_to_come_again(
    client: Client, published: Published
) -> None:
    card.draw.cache_clear()
    with card._one:
        response = client.get(pinned(published, ALIVE, "/card.png"))
    assert response.status_code == 503 and response["Retry-After"] == "5" and "Cache-Control" not in response
    assert client.get(pinned(published, ALIVE, "/card.png")).status_code == 200


def test_a_name_of_two_lines_is_drawn_on_one(client: Client, published: Published) -> None:
    rename(published, "two\nlines")
    assert client.get(pinned(published, ALIVE, "/card.png")).status_code == 200


def test_the_card_of_a_renamed_sae_is_at_another_address(client: Client, published: Published) -> None:
    """Whoever has the one before may keep it for a year."""
    def kept() -> str:
        page = client.get(published.url(ALIVE)).content.decode()
        return re.findall(r'<meta property="og:image" content="([^"]*)">', page)[0]

    before = kept()
    rename(published, "another")
    after = client.get(f"/oembed?url=http://testserver{published.url(ALIVE)}").json()["thumbnail_url"]
    assert kept() == after != before
    assert client.get(after)["Cache-Control"] == "public, max-age=31536000, immutable"
    assert client.get(before)["Cache-Control"] == "public, max-age=86400, immutable"


def test_a_card_draws_no_script_that_it_has_no_letters_for() -> None:
    assert card.has_glyph("λ") and card.has_glyph(" ") and card.has_glyph("↵") and not card.has_glyph("月")


def test_the_page_of_a_latent_says_what_it_is_to_whoever_shows_a_link(client: Client, published: Published) -> None:
    page = client.get(published.url(ALIVE)).content.decode()
    assert '<meta name="twitter:card" content="summary_large_image">' in page
    assert 'content="Strongest on  moon ·  Moon; fires on 1 in 475 tokens."' in page
    assert 'content="It never fired on 1,000,000 tokens."' in client.get(published.url(DEAD)).content.decode()
    (oembed,) = re.findall(r'type="application/json\+oembed" href="([^"]*)"', page)
    assert client.get(oembed).json()["title"].startswith(f"Latent {ALIVE} of sae:")


def test_oembed_leads_from_an_address_to_a_pinned_frame(client: Client, published: Published) -> None:
    named = f"/s/{published.sae.slug}/{ALIVE}"
    for at in (published.url(ALIVE), named, pinned(published, ALIVE)):
        query = {"url": f"http://testserver{at}?int=b3", "maxwidth": "400", "maxheight": "9"}
        said = client.get("/oembed", query).json()
        assert (said["version"], said["type"], said["width"], said["height"]) == ("1.0", "rich", 400, 160)
        assert f'src="http://testserver{pinned(published, ALIVE, "/embed")}?int=b3"' in said["html"]
        assert 'width="400"' in said["html"] and (said["thumbnail_width"], said["thumbnail_height"]) == (1200, 630)


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ({}, 400, "No address was given"),
        ({"url": "http://elsewhere.example/s/7f3a9c2e0080/0"}, 404, "not of this site"),
        ({"url": "http://testserver/jobs"}, 404, "Only latents can be embedded"),
        ({"url": "http://testserver/s/7f3a9c2e0080"}, 404, "Only latents can be embedded"),
        ({"url": "http://testserver/s/7f3a9c2e0080/99"}, 404, "numbered 0 to 23"),
        ({"url": "http://testserver/s/abcdef123456/0"}, 404, "There is no SAE abcdef123456"),
        ({"url": "http://[/s/7f3a9c2e0080/0"}, 404, "not of this site"),
        ({"url": "http://testserver/s/\0/0"}, 404, "not of this site"),
        ({"url": "http://testserver/s/7f3a9c2e0080/0", "format": "xml"}, 501, "format=json"),
    ],
)  # fmt: skip
def test_oembed_says_what_is_wrong(
    client: Client, published: Published, query: dict[str, str], status: int, sentence: str
) -> None:
    response = client.get("/oembed", query)
    assert response.status_code == status and sentence in response.json()["message"], response.content


def test_what_a_pinned_run_says_is_kept_by_everybody(client: Client, published: Published) -> None:
    for rest in (".json", "/contexts", "/embed", "/card.png", "/cite.json"):
        first = client.get(pinned(published, ALIVE, rest))
        assert first["Cache-Control"] == "public, max-age=86400, immutable", rest
        again = client.get(pinned(published, ALIVE, rest), headers={"If-None-Match": first["ETag"]})
        assert again.status_code == 304 and again["ETag"] == first["ETag"] and not again.content
        assert again["Cache-Control"] == first["Cache-Control"]
        assert client.get(published.url(ALIVE, rest))["Cache-Control"] == "no-cache", rest
    of_sae = client.get(f"/s/{published.sae.public_id}@r{published.run.number}/cite.json")
    assert of_sae["Cache-Control"] == "public, max-age=86400, immutable"


READER = {"Sec-Fetch-User": "?1"}  # of a link that somebody clicked, or an address that somebody typed
FRAME, OLD_FRAME = {"Sec-Fetch-Dest": "iframe"}, {"Referer": "http://blog.example/post"}


def shared(published: Published) -> bool:
    return Run.objects.get(pk=published.run.pk).shared_at is not None


def test_no_crawler_and_no_preview_keeps_a_run(client: Client, published: Published) -> None:
    """Whatever they follow: pinned links, pictures, citations, what oEmbed answers."""
    at = f"/s/{published.sae.public_id}"
    for rest in ("/0", "/0.json", "", "@r3", "@r3.json", "@r3/0", "@r3/0.json", "@r3/0/contexts", "@r3/0/embed",
                 "@r3/0/card.png", "/0/cite", "/0/cite.json", "@r3/0/cite", "@r3/random", "/cite",
                 "@r3/cite.json"):  # fmt: skip
        for headers in ({}, {**READER, "Sec-Purpose": "prefetch;prerender"}, {"Referer": f"http://testserver{at}"}):
            client.get(at + rest, headers=headers)
        client.head(at + rest, headers=READER)
    client.get(f"/oembed?url=http://testserver{at}/0")
    client.get(f"{at}@r3/0", headers=OLD_FRAME)  # a link on another site, which crawlers follow too
    assert not shared(published)


@pytest.mark.parametrize(
    ("rest", "headers"),
    [("@r3/0", READER), ("@r3", READER), ("@r3/0.json", READER), ("@r3/0/embed", FRAME), ("@r3/0/embed", OLD_FRAME),
     ("/0/cite", READER)],
)  # fmt: skip
def test_a_run_whose_link_somebody_follows_is_kept(
    client: Client, published: Published, rest: str, headers: dict[str, str]
) -> None:
    client.get(f"/s/{published.sae.public_id}{rest}", headers=headers)
    assert shared(published)
    first = Run.objects.get(pk=published.run.pk).shared_at
    client.get(pinned(published, ALIVE), headers=READER)
    assert Run.objects.get(pk=published.run.pk).shared_at == first


@pytest.mark.parametrize("rest", ["/0/cite", "/0/cite.json", "@r3/0/cite.json"])
def test_who_asks_for_a_citation_by_post_keeps_the_run(published: Published, rest: str) -> None:
    client = Client(enforce_csrf_checks=True)
    address = f"/s/{published.sae.public_id}{rest}"
    before = client.get(address)
    assert ("Keep this run" in before.content.decode()) == rest.endswith("cite")
    after = client.post(address)
    assert after.status_code == 200 and shared(published) and "Keep this run" not in after.content.decode()
    again = client.get(address, headers={"If-None-Match": before["ETag"]})
    assert rest.endswith(".json") or "Keep this run" not in again.content.decode()


def test_a_program_with_a_token_that_opens_a_pinned_address_keeps_its_run(
    client: Client, published: Published, django_user_model: Any
) -> None:
    user = django_user_model.objects.create_user("reader", password="a long one")
    _, key = accounts.new_token(user, "notebook")
    client.get(published.url(ALIVE, ".json"), headers={"Authorization": f"Bearer {key}"})
    assert not shared(published)
    client.get(pinned(published, ALIVE, ".json"), headers={"Authorization": f"Bearer {key}"})
    assert shared(published)


def test_a_name_with_a_run_leads_to_the_pinned_address(client: Client, published: Published) -> None:
    for rest in ("@r3/5?int=b2", "@r3", "@r3/5.json"):
        response = client.get(f"/s/{published.sae.slug}{rest}")
        assert response["Location"] == f"/s/{published.sae.public_id}{rest}"
    assert client.get(f"/s/{published.sae.slug}@3/5").status_code == 404


def test_a_citation_as_json_is_json(client: Client, published: Published) -> None:
    assert set(json.loads(client.get(published.url(ALIVE, "/cite.json")).content)) == {
        "id", "title", "url", "bibtex", "plain", "markdown", "embed", "html"
    }  # fmt: skip
    assert client.get(published.url(999, "/cite.json")).json()["error"] == "latent out of range"
