"""What is said of a checkpoint before it is loaded, what is asked, and what a person may correct."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_backend.core.checkpoints import FORMATS, OPTIONS, READERS, CheckpointError, checks, detect, load
from sae_backend.core.checkpoints.hooks import in_text, of_module
from sae_backend.core.checkpoints.overrides import Overrides
from sae_backend.core.detected import ARCHITECTURES, as_json, choices_of
from sae_backend.core.sae import SELECT, SparseAutoencoder
from tests.core.small import small_sae
from tests.core.test_bad_checkpoints import BAD
from tests.core.test_checkpoints import READ as SAELENS
from tests.core.test_checkpoints_formats import READ as OTHERS
from tests.formats import FIXTURES

IDENTITIES = {
    "dictionary_learning/gated": "f285e87bf8b1",
    "gemma_scope_2/resid_post": "9cc70501d5ec",
    "goodfire/l19": "73049c28593b",
    "lm_saes/jumprelu": "880fba56d921",
    "openai/v5_topk": "08817cb33824",
    "saelens/standard": "5d783c4896b2",
    "saelens/topk_rescale_dec_norm": "97c7b3255b1e",
    "sparsify/topk": "95a4de25263f",
}
"""An address on a site: a change here breaks every link to an SAE of that format."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_of_a_checkpoint_is_what_it_was(name: str) -> None:
    assert load(FIXTURES / name).identity()[:12] == IDENTITIES[name]


@pytest.mark.parametrize("name", [*SAELENS, *OTHERS])
def test_what_is_detected_is_what_is_loaded(name: str) -> None:
    found, cfg = detect(FIXTURES / name), load(FIXTURES / name).cfg
    for field in ("format", "architecture", "d_in", "d_out", "d_sae", "k", "hook_name", "hook_name_out", "input_scale"):
        assert getattr(found, field) == getattr(cfg, field), field
    assert (found.normalisation, found.lm_name) == (cfg.input_norm, cfg.model_name)
    assert found.format_title == FORMATS[found.format]
    assert json.loads(json.dumps(as_json(found)))["file"] == found.file


@pytest.mark.parametrize("name", [*SAELENS, *OTHERS])
def test_only_hook_points_that_no_file_says_are_asked_for(name: str) -> None:
    found = detect(FIXTURES / name)
    assert ("hook_name" in {q.field for q in found.questions}) == (found.hook_name is None)
    for question in found.questions:
        assert question.field in OPTIONS and question.text.endswith(".")
        assert question.required == (question.default is None)
    answers = {question.field: "blocks.1.hook_resid_post" for question in found.questions if question.required}
    assert not [q for q in detect(FIXTURES / name, **answers).questions if q.required]


def test_every_format_has_a_title_and_a_reader() -> None:
    assert FORMATS.keys() == READERS.keys() - {"elsewhere"}


def test_every_option_is_read_and_described() -> None:
    assert OPTIONS.keys() == Overrides.__dataclass_fields__.keys()
    assert ARCHITECTURES.keys() == SELECT.keys()
    for name, option in OPTIONS.items():
        assert option.title and option.text.endswith(".")
        assert bool(choices_of(name)) == (option.kind == "choice")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hook": "blocks.1.hook_resid_post"}, "There is no option hook; known are hook_name"),
    ({"architecture": "relu"}, "architecture is 'relu'; known are standard, topk"),
    ({"transcoder": "yes"}, "transcoder is 'yes'; it must be true or false"),
    ({"format": "keras"}, "format is 'keras'; known are saelens"),
    ({"k": 1.5}, "k is 1.5; it must be a whole number"),
    ({"model_name": "x" * 400}, "it must be text of at most 300 characters"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_a_wrong_answer_gets_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        detect(FIXTURES / "saelens/standard", **options)


def test_an_empty_answer_says_nothing() -> None:
    plain = detect(FIXTURES / "saelens/standard")
    assert detect(FIXTURES / "saelens/standard", k=None, hook_name="", format=None) == plain


@pytest.mark.parametrize("name", ["saelens/standard", "openai/v1_relu", "sparsify/topk", "gemma_scope/res"])
@pytest.mark.parametrize("reader", FORMATS)
def test_a_checkpoint_read_as_another_format_is_read_or_refused_with_a_sentence(name: str, reader: str) -> None:
    try:
        sae = load(FIXTURES / name, format=reader, k=4)
    except CheckpointError as error:
        assert str(error).endswith(".")
    else:
        assert sae.cfg.format == reader


def test_the_way_round_of_square_matrices_is_asked_and_may_be_changed(tmp_path: Path) -> None:
    folder = BAD / "semantic/square_ambiguous"
    assert [(q.field, q.default) for q in detect(folder).questions] == [("turned", False)]
    as_they_are, turned = load(folder), load(folder, turned=True)
    assert torch.equal(turned.W_enc, as_they_are.W_enc.T) and torch.equal(turned.W_dec, as_they_are.W_dec.T)
    assert not detect(folder, turned=True).questions
    cfg = json.loads((folder / "cfg.json").read_text()) | {"architecture": "topk", "k": 2}
    both = shutil.copytree(folder, tmp_path / "both")
    (both / "cfg.json").write_text(json.dumps(cfg | {"rescale_acts_by_decoder_norm": True}))
    weights = load_file(folder / "sae_weights.safetensors")
    norm = load(both, turned=True).W_enc.norm(dim=0) / weights["W_enc"].T.norm(dim=0)
    torch.testing.assert_close(norm, weights["W_dec"].T.norm(dim=1))
    wide = FIXTURES / "saelens/standard"
    assert load(wide, turned=True).identity() == load(wide).identity()


def test_a_transcoder_may_be_declared_one_or_not(tmp_path: Path) -> None:
    out = "blocks.3.hook_mlp_out"
    said = load(FIXTURES / "saelens/standard", hook_name_out=out)
    assert said.cfg.hook_name_out == out and not said.cfg.subtract_b_dec
    assert load(FIXTURES / "saelens/standard", hook_name_out=out, subtract_b_dec=True).cfg.subtract_b_dec
    assert load(FIXTURES / "lm_saes/transcoder_topk", transcoder=False).cfg.hook_name_out is None


PLACES = {
    ("model.layers.12", "out"): "blocks.12.hook_resid_post",
    ("gpt_neox.layers.3.mlp", "out"): "blocks.3.hook_mlp_out",
    ("transformer.h.0.attn", "out"): "blocks.0.hook_attn_out",
    ("h.3.mlp", "in"): "blocks.3.mlp.hook_in",
    ("model.layers.4.self_attn.o_proj.input", "out"): "blocks.4.attn.hook_z",
    ("model.layers.4.post_feedforward_layernorm.output", "out"): "blocks.4.hook_mlp_out",
    ("model.layers.7.mlp.down_proj", "in"): "blocks.7.mlp.hook_post",
    ("layers.2", "in"): "blocks.2.hook_resid_pre",
    ("embed_tokens", "out"): None,
    ("layers.2.rotary", "out"): None,
}


@pytest.mark.parametrize(("place", "hook_name"), PLACES.items())
def test_modules_are_spelled_as_transformerlens_does(place: tuple[str, Any], hook_name: str | None) -> None:
    assert of_module(*place) == hook_name


def test_gemmas_sublayers_are_read_before_the_norm_behind_them() -> None:
    assert of_module("layers.3.mlp", "out", "google/gemma-2-2b") == "blocks.3.mlp.hook_out"
    assert of_module("layers.3.self_attn", "out", "google/gemma-3-4b-pt") == "blocks.3.attn.hook_out"
    assert of_module("layers.3", "out", "google/gemma-2-2b") == "blocks.3.hook_resid_post"


def test_folders_names_spell_hook_points() -> None:
    named = ["resid_post_layer_8/trainer_3", "mlp_out_layer2/10_32768", "layer_5/resid_pre", "trainer_0"]
    assert [in_text(text) for text in named] == [
        "blocks.8.hook_resid_post", "blocks.2.hook_mlp_out", "blocks.5.hook_resid_pre", None
    ]  # fmt: skip


def test_openais_hook_points_are_told_by_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2-small/resid_post_attn_v5_32k/autoencoders"
    folder.mkdir(parents=True)
    source = next((FIXTURES / "openai/v5_topk").glob("*.pt"))
    found = detect(shutil.copy(source, folder / "6.pt"))
    assert (found.hook_name, found.lm_name) == ("blocks.6.hook_resid_mid", "gpt2-small")
    assert detect(shutil.copy(source, tmp_path / "a.pt")).hook_name is None


def states(sae: SparseAutoencoder) -> dict[str, str]:
    return {check.name: check.state for check in checks.static(sae)}


@pytest.mark.parametrize("name", [*SAELENS, *OTHERS])
def test_no_check_fails_a_good_checkpoint(name: str) -> None:
    assert "fail" not in states(load(FIXTURES / name)).values()


def test_a_decoder_of_zeros_fails_and_one_row_of_zeros_warns() -> None:
    assert states(load(BAD / "semantic/zero_dec"))["decoder norms"] == "fail"
    sae = small_sae()
    sae.W_dec[3] = 0
    assert states(sae)["decoder norms"] == "warn"
    assert "1 latents have a decoder row of zeros" in next(c.text for c in checks.static(sae) if "norms" in c.name)


def test_matrices_the_wrong_way_round_are_suspected(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "saelens/standard", tmp_path / "sae")
    weights = load_file(folder / "sae_weights.safetensors")
    assert states(load(folder))["encoder and decoder"] == "ok"
    shuffled = weights["W_dec"][torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    save_file(weights | {"W_dec": shuffled}, folder / "sae_weights.safetensors")
    assert states(load(folder))["encoder and decoder"] == "warn"


def test_values_that_are_not_finite_fail_and_notes_warn() -> None:
    sae = small_sae("standard")
    sae.b_enc[0] = torch.nan
    assert states(sae)["finite values"] == "fail"
    assert states(load(FIXTURES / "saelens/abstopk"))["container"] == "warn"


def test_fewer_latents_than_dimensions_warn() -> None:
    assert states(small_sae(d_sae=20))["shapes"] == "warn"
