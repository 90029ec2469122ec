"""The demo's training chain on little text, its files beside the shipped ones, and the shipped ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import KNOWN_LATENTS, MAIN_SAE, MODEL, ROOT, SAES, corpus, train
from demo.training import activations, evaluation, formats, lm, saes, tokenizer
from demo.training.settings import SaeSettings, Settings, quick
from demo.training.sparse import Count, Jump, JumpReLU, TopK

SHIPPED_SAES = sorted(path.name for path in SAES.iterdir() if (path / "cfg.json").exists())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick training of everything: about 20 seconds on one core."""
    out = tmp_path_factory.mktemp("demo-train")
    command = [sys.executable, "-m", "demo.train", "--quick", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT.parent, env=environment, capture_output=True, text=True)
    return out


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_language_models_loss_falls(trained: Path) -> None:
    losses = [line["lm"]["loss"] for line in log(trained) if "lm" in line]
    assert losses[0] > 8
    assert losses[-1] < losses[0] - 1
    assert np.isfinite(losses).all()


def test_the_trained_model_is_saved_like_the_shipped_one(trained: Path) -> None:
    ours, shipped = load_file(trained / "model/model.safetensors"), load_file(MODEL / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
        name: (t.shape, t.dtype) for name, t in shipped.items()
    }
    configs = [json.loads((folder / "config.json").read_text()) for folder in (trained / "model", MODEL)]
    for config in configs:
        del config["transformers_version"]
    assert configs[0] == configs[1]


def test_the_trained_model_loads_from_its_folder_and_predicts(trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained / "model", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(trained / "model")("import os\n")["input_ids"]
    logits = model(torch.tensor([[0, *ids]])).logits
    assert logits.shape == (1, len(ids) + 1, 4096)
    assert logits.isfinite().all()


@pytest.mark.parametrize("text", ["def f(x):\n\treturn  'é→😀'\r\n", "    if not\n\n  x:  # 12345\n"])
def test_the_trained_tokenizer_gives_back_any_text_and_is_saved_like_the_shipped_one(
    trained: Path, text: str
) -> None:
    loaded = AutoTokenizer.from_pretrained(trained / "model")
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.bos_token_id == loaded.eos_token_id == 0
    ours, shipped = [json.loads((at / "tokenizer.json").read_text()) for at in (trained / "model", MODEL)]
    assert ours["pre_tokenizer"] == shipped["pre_tokenizer"]
    assert len(ours["model"]["vocab"]) == len(shipped["model"]["vocab"]) == 4096


@pytest.mark.parametrize("name", SHIPPED_SAES)
def test_a_trained_autoencoder_is_saved_like_the_shipped_one(trained: Path, name: str) -> None:
    ours, shipped = [load_file(at / name / "sae_weights.safetensors") for at in (trained / "saes", SAES)]
    assert {key: (t.shape, t.dtype) for key, t in ours.items()} == {
        key: (t.shape, t.dtype) for key, t in shipped.items()
    }
    configs = [json.loads((at / name / "cfg.json").read_text()) for at in (trained / "saes", SAES)]
    for config in configs:
        del config["metadata"]["training_tokens"]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", SHIPPED_SAES)
def test_an_autoencoders_unexplained_variance_falls(trained: Path, name: str) -> None:
    fvu = [line["fvu"] for line in log(trained) if line.get("sae") == name]
    assert fvu[-1] < fvu[0]


def test_checkpoints_are_saved_like_the_shipped_ones(trained: Path) -> None:
    folder = "resid_post_2_topk32_4096_ckpts"
    ours, shipped = [sorted((at / folder).glob("step_*.pt")) for at in (trained / "saes", SAES)]
    assert len(ours) == len(shipped) == 2
    left, right = torch.load(ours[0], weights_only=True), torch.load(shipped[0], weights_only=True)
    assert left.keys() == right.keys()
    assert left["activation_state_dict"] == right["activation_state_dict"]
    assert all(left[key].shape == right[key].shape for key in left if isinstance(left[key], torch.Tensor))


def test_steps_that_are_done_are_not_run_again(trained: Path) -> None:
    before = log(trained)
    train.run_until(train.Run(quick(), trained), "evaluate")
    assert log(trained) == before


def test_a_step_that_runs_again_outdates_the_steps_after_it(tmp_path: Path) -> None:
    run = train.Run(quick(), tmp_path)
    names = list(train.STEPS)
    (tmp_path / "done").mkdir()
    for name in names:
        train.done_file(run, name).write_text(train.signature(run, name))
    train.done_file(run, "tokenizer").write_text("other settings")
    with pytest.raises(FileNotFoundError):
        train.run_until(run, "tokenizer")
    assert [train.done_file(run, name).exists() for name in names] == [True] + [False] * 5


def test_the_command_line_changes_the_steps_and_the_tokens() -> None:
    settings = train.settings_of(train.parse(["--steps", "4", "--tokens", "2048"]))
    assert settings.lm_steps == 4
    assert {sae.tokens for sae in settings.saes} == {2048}
    assert train.settings_of(train.parse([])) == Settings()


def test_learning_rates_warm_up_stay_and_fall_to_nothing() -> None:
    assert [round(lm.lr_factor(step, 100, 5), 3) for step in (0, 4, 9, 55, 99)] == [0.2, 1, 1, 0.5, 0.011]
    assert [round(saes.lr_factor(step, 100, 5), 3) for step in (0, 4, 74, 99)] == [0.2, 1, 1, 0.04]


def test_a_pass_of_batches_shows_every_position_once() -> None:
    batches = list(saes.batches(12, 4, 7, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4] * 7
    for one_pass in (batches[:3], batches[3:6]):
        assert sorted(torch.cat(one_pass).tolist()) == list(range(12))


def test_rows_begin_with_end_of_text_and_share_no_token() -> None:
    rows = activations.rows(np.arange(1, 600, dtype=np.uint16), offset=10)
    assert rows.shape == (2, 256)
    assert rows[:, 0].tolist() == [0, 0]
    assert rows[:, 1:].ravel().tolist() == list(range(11, 521))


def test_a_dead_latents_encoder_learns_from_what_the_live_ones_miss() -> None:
    torch.manual_seed(0)
    sae, hidden = TopK(8, 16, k=2), torch.randn(32, 8)
    sae.initialise(hidden)
    with torch.no_grad():
        sae.b_enc[8:] = 9.0  # these take both places of every row
    for silent_for, learns in ((0, False), (1000, True)):
        sae.zero_grad()
        sae.silent_for[:8] = silent_for
        sae.loss(sae.prepare(hidden), 1.0, dead_after=500)[0].backward()
        assert sae.W_enc.grad is not None
        assert bool(sae.W_enc.grad[:, :8].any()) == learns


def test_thresholds_learn_only_from_what_lies_within_half_a_bandwidth() -> None:
    pre_acts = torch.tensor([[1.04, 3.0], [0.97, 0.1], [0.92, 5.0]], requires_grad=True)
    threshold = torch.tensor([1.0, 1.0], requires_grad=True)
    acts = Jump.apply(pre_acts, threshold, 0.1)
    assert acts.tolist() == [[pytest.approx(1.04), 3.0], [0.0, 0.0], [0.0, 5.0]]
    (acts.sum() + Count.apply(pre_acts, threshold, 0.1)).backward()
    assert pre_acts.grad is not None and threshold.grad is not None
    assert pre_acts.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    # two of three lie near the first threshold: -1/0.1 each through the activations, -1/0.3 each through L0
    assert threshold.grad.tolist() == [pytest.approx(-20 - 20 / 3), 0.0]


def test_a_jumprelus_input_scale_is_divided_out_when_it_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae, hidden = JumpReLU(8, 16, target=2.0), 50 + 20 * torch.randn(64, 8)
    sae.initialise(hidden)
    formats.save_saelens(sae, tmp_path / "sae", tokens=1)
    saved = formats.load(tmp_path / "sae")
    assert sae.scale != 1.0
    difference = (saved.reconstruct(hidden)[0] - sae.reconstruct(hidden)[0]).abs().amax(1)
    assert (difference < 0.5).sum() > 55  # of 64; float16 moves the others' pre-activations over a threshold


def test_openai_files_hold_topk_only(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="SAELens folder"):
        formats.save_openai(JumpReLU(8, 16), tmp_path / "sae.pt")


def test_checkpoints_are_taken_at_fractions_of_the_run() -> None:
    settings = SaeSettings("topk", 4096, 32, tokens=6_000_000, lr=8e-4, checkpoints=(0.03, 0.3))
    assert saes.checkpoint_steps(settings, 2048) == [87, 878]


@pytest.fixture(scope="module")
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def held_out(shipped_tokenizer: Tokenizer) -> evaluation.HeldOut:
    texts = [text for path, text in corpus.documents() if corpus.is_validation(path)]
    return evaluation.held_out(lm.load(MODEL), tokenizer.encode(shipped_tokenizer, texts), limit=16)


def test_the_shipped_model_predicts_held_out_source(held_out: evaluation.HeldOut) -> None:
    assert held_out.loss < 2.9
    assert held_out.zero_loss > 7


@pytest.mark.parametrize(("name", "l0", "fvu"), [("topk32_4096", 32, 0.08), ("jumprelu_4096", 22, 0.13)])
def test_a_shipped_autoencoder_explains_held_out_residuals(
    held_out: evaluation.HeldOut, name: str, l0: int, fvu: float
) -> None:
    sae = formats.load(SAES / f"resid_post_2_{name}")
    figures = evaluation.figures(lm.load(MODEL), sae, held_out, held_out.hidden[:256])
    assert figures["l0"] == pytest.approx(l0, abs=4)
    assert figures["fvu"] < fvu
    assert figures["recovered_vs_zero"] > 0.95


@pytest.mark.parametrize(
    ("latent", "text", "tokens"),
    [
        (2634, "def get(items, i):\n    try:\n        return items[i]\n    except IndexError:\n", {" Index"}),
        (1616, "def call(name: str, retries: int = 3) -> Any:\n    pass\n", {" Any"}),
        (2080, "import os\nimport sys\nimport re\nfrom collections import deque\nimport types\n", {"\n"}),
        (1614, "class A:\n    @property\n    def name(self):\n        return self._name\n", {"property"}),
        (3618, "    >>> f(0)\n    Traceback (most recent call last):\n      ...\n", {" last"}),
        (1642, "        # Issue #18808: join the thread\n", {" #"}),
        (1387, "    Changed in version 3.8.\n    See RFC 2822 section 4.3.3\n", {"3", "8"}),
        (3569, "    if self.a and \\\n       self.b:\n        return x\n", {"\n       "}),
        (612, '    """Return ``None`` and set ``x`` to the value.\n', {" and", " to"}),
        (1080, "def f(x, y):\n    assert len(x) == 2\n", {")"}),
    ],
)
def test_a_known_latent_is_strongest_where_its_description_says(
    shipped_tokenizer: Tokenizer, latent: int, text: str, tokens: set[str]
) -> None:
    ids = shipped_tokenizer.encode(text).ids
    hidden = activations.collect(lm.load(MODEL), np.array([[0, *ids]]), torch.float32)
    acts = formats.load(MAIN_SAE).encode(hidden)[:, latent]
    assert latent in KNOWN_LATENTS
    assert acts.max() > 1
    assert shipped_tokenizer.decode([ids[int(acts.argmax())]]) in tokens
