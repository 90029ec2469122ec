"""The page of one latent: what it shows, in every state, and what it costs."""

from __future__ import annotations

import gzip
import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from browser import definitions
from browser.queries import latents
from browser.queries.latent_page import View
from sae_backend import packing
from sae_backend.models import Run
from tests import packers
from tests.browser.latent_rows import ALIVE, CTX_LEN, DEAD, N_TOKENS, PLAIN, RARE, Published, publish

pytestmark = pytest.mark.django_db


@pytest.fixture
def published() -> Published:
    return publish()


def get(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def rows(page: str) -> list[str]:
    return re.findall(r'<li class="ctx".*?</li>', page, re.S)


def test_the_page_shows_its_statistics_and_twenty_top_contexts(client: Client, published: Published) -> None:
    page = get(client, published.url(ALIVE))
    assert "2.1e-3" in page and "48.2" in page and "fires on <b>1 in 475</b>" in page
    assert "p80</i>" in page and "80th percentile" in page
    assert len(rows(page)) == 20
    assert "The 20 strongest of 2\u202f104 firings" in page
    assert "<script>alert" not in page


def test_every_row_has_its_peak_first_after_the_column(client: Client, published: Published) -> None:
    for row in rows(get(client, published.url(ALIVE))):
        after = row.split('<span class="post')[1]
        assert re.match(
            r'[^>]*>(<span class=bys[^>]*>(<span[^p>]*>[^<]*</span>)*)?<span class="l\d pk', after
        ), after[:200]


def test_a_row_names_the_document_and_position_of_its_own_peak(client: Client, published: Published) -> None:
    """Windows begin 5 tokens into document 2i; each separator before the peak begins the next document."""
    moon, window = {published.words.ids[t] for t in (b" moon", b" Moon")}, published.windows[0]
    peak = next(i for i, t in enumerate(window) if t in moon)
    assert 0 not in window[:peak]
    page = get(client, published.url(ALIVE))
    assert f'id="c0-{peak}"' in page
    assert f'Whole context: document 0, token {5 + peak}"' in page


def test_after_a_separator_positions_begin_anew(client: Client, published: Published) -> None:
    window = published.windows[5]
    separator = window.index(0)
    example = packing.Examples(
        *(packing.np.array(a) for a in ([0], [5], [separator + 3], [0, 1], [separator + 3], [48.2]))
    )
    with connection.cursor() as cursor:
        blob = packers.pack_examples(example)
        cursor.execute(
            "update latent_page set examples = %s where index = 5 and run_id = %s", [blob, published.run.pk]
        )
    data = client.get(published.url(5, ".json")).json()["examples"]
    assert [(e["document_index"], e["document"], e["position"]) for e in data] == [(11, "document 11", 2)]


def test_an_interval_is_its_own_link_and_shows_its_own_contexts(client: Client, published: Published) -> None:
    page = get(client, published.url(ALIVE, "?int=b3&view=snip&ws=1&unknown=1"))
    assert 'data-band="b3"' in page and 'data-view="snip"' in page and 'class="lat ws"' in page
    assert 'href="?int=b4&amp;view=snip&amp;ws=1#contexts" data-int="b4"' in page
    assert f'href="{published.url(RARE)}?int=b3&amp;view=snip&amp;ws=1" rel="next"' in page
    assert len(rows(page)) == 5
    fragment = get(client, published.url(ALIVE, "/contexts?int=b3&view=snip&ws=1"))
    assert rows(fragment) == rows(page)
    assert "<html" not in fragment


def test_parameters_that_make_no_sense_are_ignored(client: Client, published: Published) -> None:
    odd = get(client, published.url(ALIVE, "?int=b11&view=wide&ws=yes&ctx=%22%3E%3Cscript%3E"))
    assert len(rows(odd)) == 20
    assert "<script>" not in odd.replace('<script src="', "")


def test_the_whole_view_sends_whole_windows_and_the_concordance_a_part(
    client: Client, published: Published
) -> None:
    assert "data-part" not in get(client, published.url(ALIVE, "?view=full"))
    part = rows(get(client, published.url(ALIVE)))
    assert all("data-part" in row for row in part)


def test_an_address_opens_one_context_whole(client: Client, published: Published) -> None:
    key = re.findall(r'id="c(\d+-\d+)"', get(client, published.url(ALIVE)))[3]
    page = get(client, published.url(ALIVE, f"?ctx={key}"))
    (open_row,) = [row for row in rows(page) if " data-open" in row]
    assert f'id="c{key}"' in open_row and "data-part" not in open_row
    assert f'href="?#c{key}"' in open_row  # closes it again


def test_a_dead_latent_says_so_and_keeps_what_its_weights_say(client: Client, published: Published) -> None:
    page = get(client, published.url(DEAD))
    assert "No activations on 1.0" in page
    assert "below <b>3.0e-6</b> (3/N, 95 %)" in page
    assert f"never fired on the {N_TOKENS:,}".replace(",", "\u202f") in page
    assert 'id="acth"' not in page and 'id="ctxs"' not in page
    assert page.count('<ol class="nb">') == 2 and "Promoted" in page
    assert "Nearest latent that fired, by decoder: 3, cos 0.55" in page


def test_a_dead_latent_says_how_near_it_came_and_where(client: Client, published: Published) -> None:
    page = get(client, published.url(DEAD))
    assert "It came closest <b>0.42</b> below the k-th largest pre-activation of the token (or 0)." in page
    assert "on 8\u202f192 sampled tokens" in page
    assert re.findall(r"<b>(−[\d.]+)</b>", page) == ["−0.42", "−0.50", "−1.25"]
    assert len(rows(page)) == 3
    [opened] = [row for row in rows(get(client, published.url(DEAD, "?ctx=2-27"))) if " data-open" in row]
    assert 'id="c2-27"' in opened
    data = client.get(published.url(DEAD, ".json")).json()
    assert data["stats"]["margin"] == -0.42 and data["margin_tokens"] == 8192
    assert [(m["context"], m["peak"], m["margin"]) for m in data["misses"]][1:] == [(1, 7, -0.5), (2, 27, -1.25)]
    assert client.get(published.url(ALIVE, ".json")).json()["misses"] == []


def test_latents_that_fire_together_are_neighbours_with_their_counts(client: Client, published: Published) -> None:
    page = get(client, published.url(ALIVE))
    assert page.count('<ol class="nb">') == 3 and "<span>Fire together</span>" in page
    index = 60 / (90 + 90 - 60)
    assert f'<li><span>{index:.2f}</span><span class="dv"><i style="--v:50"></i></span>' in page
    assert '<span title="60 of its 90">60</span>' in page and page.count('<div class="nbs g">') == 1
    assert "on 4\u202f096 sampled tokens, 90 of them its own" in page
    near = client.get(published.url(ALIVE, ".json")).json()["neighbours"]
    assert near["sample"] == {"tokens": 4096, "firings": 90}
    first = near["together"][0]
    assert (first["jaccard"], first["both"], first["firings"]) == (index, 60, 90)
    assert [n["both"] for n in near["nearest"]] == [5 * i for i in range(10)]
    assert near["nearest"][2]["jaccard"] == 10 / (90 + 18 - 10)


def test_a_threshold_is_marked_on_the_histogram(client: Client, published: Published) -> None:
    assert 'class="theta"' not in get(client, published.url(ALIVE))
    with connection.cursor() as cursor:
        cursor.execute("update latent set threshold = 12.05 where run_id = %s", [published.run.pk])
    page = get(client, published.url(ALIVE))
    assert '<span class="theta" style="--x:25.0" title="It fires from here on"><b>θ 12.1</b></span>' in page
    assert client.get(published.url(ALIVE, ".json")).json()["stats"]["threshold"] == 12.05


@pytest.mark.parametrize("index", [ALIVE, DEAD])
def test_a_checkpoint_that_counts_says_how_long_a_latent_has_not_fired_in_training(
    client: Client, published: Published, index: int
) -> None:
    assert "Steps since it fired" not in get(client, published.url(index))
    with connection.cursor() as cursor:
        cursor.execute("update latent set since_fired = 1234 where run_id = %s", [published.run.pk])
    assert "Steps since it fired" in get(client, published.url(index))
    assert client.get(published.url(index, ".json")).json()["stats"]["since_fired"] == 1234


def test_a_run_of_before_there_were_samples_has_its_pages(client: Client, published: Published) -> None:
    with connection.cursor() as cursor:
        cursor.execute("update latent set margin = null, threshold = null where run_id = %s", [published.run.pk])
        cursor.execute("update latent_page set misses = null, cofiring = null where run_id = %s", [published.run.pk])
    for index in (ALIVE, DEAD):
        page, data = get(client, published.url(index)), client.get(published.url(index, ".json")).json()
        assert page.count('<ol class="nb">') == 2 and "Closest it came" not in page
        assert (data["neighbours"]["together"], data["misses"], data["stats"]["margin"]) == (None, [], None)


def test_a_rare_latent_states_how_little_there_is(client: Client, published: Published) -> None:
    page = get(client, published.url(RARE))
    assert len(rows(page)) == 1
    assert "what is said of its activations rests on <b>1</b> firing<" in page
    assert "1 context with 1 firing: there is no other" in page
    assert 'data-int="b10"' in page and 'data-int="b1"' not in page
    assert "—" in page  # kurtosis of one firing is undefined
    assert "No context is kept" in get(client, published.url(RARE, "?int=b4"))


def test_a_model_without_unembedding_has_no_logit_effects(client: Client) -> None:
    published = publish(unembedding=False)
    assert "no unembedding" in get(client, published.url(ALIVE))
    assert client.get(published.url(ALIVE, ".json")).json()["logits"] is None


def test_neighbours_show_their_density_and_strongest_tokens(client: Client, published: Published) -> None:
    page = get(client, published.url(ALIVE))
    nearest = page.split("Nearest decoders")[1].split("</ol>")[0]
    assert f'href="{published.url(DEAD)}"' in nearest and ">dead</span>" in nearest
    assert f'href="{published.url(3)}"' in nearest
    assert '<span class="tki s"> moon</span>' in nearest and ">2.1e-3</span>" in nearest


def test_a_latent_beyond_the_last_is_not_found_and_the_range_is_said(
    client: Client, published: Published
) -> None:
    for rest in ("", ".json", "/contexts"):
        response = client.get(published.url(published.sae.d_sae, rest))
        assert response.status_code == 404
        assert b"numbered 0 to 23" in response.content
    assert client.get(published.url(10**12)).status_code == 404  # beyond the database's integers too


def test_an_sae_that_is_not_computed_shows_its_own_page_instead(client: Client, published: Published) -> None:
    published.sae.current_run = None
    published.sae.save()
    response = client.get(published.url(ALIVE))
    assert response.status_code == 302
    assert response.headers["Location"] == f"/s/{published.sae.public_id}"
    assert client.get(published.url(ALIVE, ".json")).status_code == 404


def test_random_leads_to_a_latent_that_fired_and_keeps_the_view(client: Client, published: Published) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "update latent set firings = 0, density = 0 where run_id = %s and index <> 7", [published.run.pk]
        )
    for _ in range(5):
        response = client.get(f"/s/{published.sae.public_id}/random?int=b2&ctx=3-4")
        assert response.status_code == 302
        assert response.headers["Location"] == published.url(7, "?int=b2")
        assert "no-store" in response.headers["Cache-Control"]


def test_next_and_previous_are_the_nearest_that_fired(client: Client, published: Published) -> None:
    page = get(client, published.url(RARE))
    assert f'href="{published.url(ALIVE)}" rel="prev"' in page and f'href="{published.url(PLAIN)}" rel="next"' in page
    last = published.sae.d_sae - 1
    assert f'href="{published.url(0)}" rel="next"' in get(client, published.url(last))  # round the end


def test_the_weakest_contexts_are_a_tab(client: Client, published: Published) -> None:
    page = get(client, published.url(ALIVE, "?int=low"))
    acts = [float(a) for a in re.findall(r'<div class="cg"><b>([\d.]+)', page)]
    assert len(acts) == 10 and acts == sorted(acts) and acts[0] == 2.4  # half of the first band
    assert "The 10 weakest of the firings that are kept" in page
    assert 'data-int="low"' not in get(client, published.url(RARE))


def test_every_figure_links_to_its_definition(client: Client, published: Published) -> None:
    anchors = set(re.findall(r'class="def" href="/statistics#([^"]+)"', get(client, published.url(ALIVE))))
    page = get(client, "/statistics")
    inside = re.findall(r'href="([^"]*)"', page.partition("<article")[2].partition("</article>")[0])
    assert inside and all(link.startswith("#") and f'id="{link[1:]}"' in page for link in inside)
    assert len(anchors) > 8
    for fragment in {*anchors, *map(definitions.anchor, definitions.ROWS.values())}:
        assert page.count(f'id="{fragment}"') == 1, fragment
    assert "d<sub>i</sub>" in page and "W_dec[i]" in page


def test_a_page_costs_four_queries_once_vocabulary_and_names_are_known(client: Client, published: Published) -> None:
    get(client, published.url(5, ".json"))
    for rest in ("", ".json"):
        with CaptureQueriesContext(connection) as captured:
            get(client, published.url(5, rest))
        assert len(captured) == 4, [q["sql"] for q in captured]
    assert all("vocabulary" not in q["sql"] and "document where" not in q["sql"] for q in captured)


def test_names_of_documents_are_kept_by_data_set_and_so_many_alone(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "MOST_NAMES", 3)
    named = latents.documents(published.run, range(2))
    other = latents.documents(publish(ctx_len=1024).run, range(2))
    assert len(named) == len(other) == 2 and len(latents._names) <= 3
    with CaptureQueriesContext(connection) as captured:
        assert latents.documents(published.run, range(2)) == named
        assert latents.documents(published.run, [1, 999]) == {1: named[1]}
    assert len(captured) == 2


@pytest.mark.parametrize("ctx_len", [128, 1024])
def test_a_page_stays_below_100_kilobytes_at_any_context_length(client: Client, ctx_len: int) -> None:
    published = publish(ctx_len=ctx_len)
    for query in ("", "?view=full", "?view=full&int=rnd", "?view=full&ctx=0-19"):
        html = get(client, published.url(ALIVE, query)).encode()
        sent = client.get(published.url(ALIVE, query), headers={"Accept-Encoding": "gzip"})
        assert sent.headers["Content-Encoding"] == "gzip" and gzip.decompress(sent.content) == html
        assert len(html) < 100_000 and len(sent.content) < 25_000, query


def test_who_has_the_page_is_told_that_it_has_not_changed(client: Client, published: Published) -> None:
    for rest in ("", ".json", "/contexts"):
        first = client.get(published.url(ALIVE, rest))
        again = client.get(published.url(ALIVE, rest), headers={"If-None-Match": first.headers["ETag"]})
        assert again.status_code == 304


def test_data_of_a_pinned_run_may_be_kept_and_of_the_live_one_is_asked_for_again(
    client: Client, published: Published
) -> None:
    pinned = f"/s/{published.sae.public_id}@r3/{ALIVE}.json"
    assert client.get(pinned).headers["Cache-Control"] == "public, max-age=86400, immutable"
    assert "ETag" in client.get(pinned).headers
    assert client.get(published.url(ALIVE, ".json")).headers["Cache-Control"] == "no-cache"


def test_links_of_a_pinned_page_stay_on_its_run(client: Client, published: Published) -> None:
    Run.objects.filter(pk=published.run.pk).update(state=Run.State.RETIRED)
    page = get(client, f"/s/{published.sae.public_id}@r3/{ALIVE}")
    assert f'href="/s/{published.sae.public_id}@r3/{RARE}" rel="next"' in page  # past the dead one
    assert f'data-url="/s/{published.sae.public_id}@r3/{ALIVE}/contexts"' in page


def test_json_has_all_that_a_notebook_needs(client: Client, published: Published) -> None:
    response = client.get(published.url(ALIVE, ".json"))
    data = response.json()
    assert b"NaN" not in response.content
    assert (data["sae"], data["run"], data["index"]) == (published.sae.public_id, 3, ALIVE)
    assert data["url"] == f"http://testserver/s/{published.sae.public_id}@r3/{ALIVE}"
    assert data["stats"]["max_act"] == 48.2 and data["stats"]["status"] == "alive"
    assert data["stats"]["tokens"] == N_TOKENS and data["stats"]["density_bound"] is None
    assert sum(data["histogram"]["counts"]) == sum(data["histogram"]["interval_counts"]) == 2104
    assert len(data["histogram"]["edges"]) == len(data["histogram"]["counts"]) + 1
    assert len(data["logits"]["promoted"]) == 20 and data["logits"]["moments"]["std"] == 0.16
    assert data["logits"]["promoted"][0] == {"token": "Soviet", "id": 1, "effect": 0.93}
    nearest = {"index": 1, "cos": 0.71, "density": 0.0, "jaccard": 0.0, "both": 0, "firings": 0}
    assert data["neighbours"]["nearest"][0] == nearest
    assert len(data["neighbours"]["opposing"]) == 10


def test_json_examples_hold_whole_contexts_strongest_first(client: Client, published: Published) -> None:
    examples = client.get(published.url(ALIVE, ".json")).json()["examples"]
    top = [e for e in examples if e["interval"] == 0]
    assert examples[: len(top)] == top and len(top) == 20
    assert [e["peak_act"] for e in top] == sorted((e["peak_act"] for e in top), reverse=True)
    assert {e["interval"] for e in examples} == set(range(12))
    for e in examples:
        ids = published.windows[e["context"]]
        assert e["token_ids"] == ids and len(e["tokens"]) == len(e["acts"]) == CTX_LEN
        assert "".join(e["tokens"]) == b"".join(published.words.tokens[i] for i in ids).decode(
            "utf-8", "replace"
        )
        assert e["acts"][e["peak"]] == e["peak_act"] == pytest.approx(max(e["acts"]), rel=1e-4)
        assert sum(a > 0 for a in e["acts"]) == 4


def test_json_of_a_dead_latent_has_its_bound_and_no_examples(client: Client, published: Published) -> None:
    data = client.get(published.url(DEAD, ".json")).json()
    assert data["stats"]["density_bound"] == 3 / N_TOKENS and data["stats"]["max_act"] is None
    assert data["examples"] == [] and data["histogram"]["counts"] == []
    assert data["neighbours"]["nearest"] and data["logits"]["promoted"]


def test_a_view_leaves_defaults_out_of_its_address() -> None:
    assert View().query() == ""
    assert View("b3", "full", True, "1-2").query() == "?int=b3&view=full&ws=1&ctx=1-2"
    assert View("b3").query(interval="top") == ""
