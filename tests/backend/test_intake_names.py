"""Names of uploads, which are strangers' text."""

from __future__ import annotations

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from sae_backend.intake.errors import Malformed
from sae_backend.intake.from_hub import HubId, parsed
from sae_backend.intake.names import MAX_SEGMENT, cleaned, collides


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("ae.pt", "ae.pt"),
        ("layer 5/cfg.json", "layer 5/cfg.json"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\Users\\me\\ae.pt", "C/Users/me/ae.pt"),
        (".bashrc", "bashrc"),
        ("...", "file"),
        (". . ../. . ../ae.pt", "ae.pt"),
        (". .\u00a0.. /.\u2003../. ae.pt ", "ae.pt"),
        ("", "file"),
        ("a\0b\n\x1b[31m\u202ec.pt", "ab[31mc.pt"),
        ("<img src=x>.pt", "img src=x.pt"),
        ("e\u0301.pt", "\xe9.pt"),
    ],
)
def test_a_name_becomes_a_relative_path_that_can_do_no_harm(given: str, kept: str) -> None:
    assert cleaned(given) == kept


@drawn(st.text("./\\ \t\u00a0\u2003\u3000\0\u200b~:a\u0301", max_size=40))
def test_no_name_climbs_hides_or_changes_when_it_is_cleaned_again(given: str) -> None:
    kept = cleaned(given)
    assert not any(part.startswith((".", " ")) or not part for part in kept.split("/"))
    assert cleaned(kept) == kept


def test_a_long_name_keeps_its_suffix() -> None:
    assert cleaned("x" * 500 + ".safetensors") == "x" * (MAX_SEGMENT - 12) + ".safetensors"
    assert len(cleaned("." + "y" * 500)) == MAX_SEGMENT


def test_a_name_collides_with_another_case_and_with_a_folder_of_its_name() -> None:
    assert collides("A.pt", ["a.pt"]) == "a.pt"
    assert collides("sae", ["sae/cfg.json"]) == "sae/cfg.json"
    assert collides("sae/cfg.json/x", ["sae/cfg.json"]) == "sae/cfg.json"
    assert collides("b", ["a", "bc"]) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("me/saes", HubId("me/saes")),
        ("me/saes@main", HubId("me/saes", "main")),
        ("me/saes:layer_5/l0_71", HubId("me/saes", "", "layer_5/l0_71")),
        (" me/saes@refs/pr/1:a/ ", HubId("me/saes", "refs/pr/1", "a")),
        ("https://huggingface.co/me/saes", HubId("me/saes")),
        ("https://huggingface.co/me/saes/tree/main/layer_5", HubId("me/saes", "main", "layer_5")),
    ],
)
def test_an_id_of_the_hub_is_understood_as_people_write_it(text: str, meant: HubId) -> None:
    assert parsed(text) == meant


@pytest.mark.parametrize(
    "text", ["", "saes", "me/saes:../x", "me/../x", "me/saes:a//b", "me/sa es", "a/b/c", "../x", "me/s\0"]
)
def test_what_is_no_id_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="no id of the hub"):
        parsed(text)
