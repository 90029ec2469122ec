"""Files that are no checkpoints, damaged or meant to harm give a sentence; what is odd but harmless is read."""

from __future__ import annotations

import shutil
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_backend.core.checkpoints import CheckpointError, detect, load

FIXTURES = Path(__file__).parents[1] / "fixtures"
BAD = FIXTURES / "bad"

ARCHIVE = "is an archive without weights"
REFUSED = {
    "archives/encrypted_flag.zip": ARCHIVE,
    "archives/null_in_name.zip": ARCHIVE,
    "archives/symlink.zip": ARCHIVE,
    "archives/traversal.zip": ARCHIVE,
    "archives/weird_names.zip": ARCHIVE,
    "bombs/npz_2GB_bzip2.npz": "encrypted or compressed with what NumPy does not use",
    "bombs/torch_pt_deflated_record.pt": "is a compressed or encrypted archive; torch.save writes neither",
    "bombs/zip_central_dir_lies.npz": "is not a readable NumPy archive",
    "bombs/zip_nested.zip": ARCHIVE,
    "bombs/zip_overlapping_entries.zip": ARCHIVE,
    "cfg/architecture_list": "architecture is a list; known are standard",
    "cfg/d_sae_float": "d_sae is 16.5; it must be a whole number",
    "cfg/duplicate_d_in": "cfg.json sets d_in twice",
    "cfg/huge_int_literal": "cfg.json holds a number of",
    "cfg/k_bool": "k is True; it must be a whole number",
    "cfg/metadata_string": "metadata is 'hello'; expected an object",
    "cfg/normalize_unknown": "normalize_activations is 'vibes'; known are",
    "cfg/not_json": "cfg.json is not JSON",
    "cfg/root_list": "cfg.json holds a list; expected an object",
    "cfg/utf16": "cfg.json is not JSON in UTF-8",
    "empty/empty.safetensors": "empty.safetensors is empty; upload it again",
    "empty/empty.pkl": "empty.pkl is empty",
    "empty/empty.zip": "empty.zip is empty",
    "empty/empty.json": "empty.json is empty",
    "empty/zip_no_entries.zip": "is an archive without weights",
    "pickle/exec_legacy_saelens_layout.pt": "asks for the Python object exec",
    "pickle/exec_os_system.pkl": "is a raw pickle",
    "pickle/getattr_gadget.pkl": "is a raw pickle",
    "pickle/object_array.npz": "W_enc.npy holds object; expected an array of floating-point numbers",
    "pickle/stack_global_dotted.pkl": "is a raw pickle",
    "pickle/exec_raw.pkl": "is a raw pickle, which can run code",
    "pickle/exec_torch_nonzip.pt": "container from before 2020",
    "pickle/exec_torch_zip.pt": "asks for the Python object exec",
    "pickle/memo_bomb.pkl": "is a raw pickle",
    "pickle/object_array.npy": "no weights in object_array.npy",
    "pickle/pickle_named.safetensors": "is a raw pickle",
    "safetensors/header_array.safetensors": "not a readable safetensors",
    "safetensors/header_len_90MB.safetensors": "invalid header length",
    "safetensors/header_len_huge.safetensors": "header too large",
    "safetensors/header_not_utf8.safetensors": "not a readable safetensors",
    "safetensors/hole.safetensors": "not a readable safetensors",
    "safetensors/int_weights.safetensors": "No known format. int_weights.safetensors has W_dec, W_enc",
    "safetensors/offset_past_end.safetensors": "not a readable safetensors",
    "safetensors/seven_bytes.safetensors": "header too small",
    "safetensors/shape_overflow.safetensors": "overflow",
    "safetensors/truncated_half.safetensors": "not fully covered",
    "safetensors/truncated_header.safetensors": "not a readable safetensors",
    "safetensors/truncated_last_byte.safetensors": "not fully covered",
    "safetensors/unknown_dtype.safetensors": "not a readable safetensors",
    "semantic/bias_mismatch": "W_enc is 8 × 16, but b_enc has 15 numbers",
    "semantic/empty_dims": "cfg.json says d_in 8, but W_enc is 0 × 16",
    "semantic/inf_bias": "b_dec has values that are NaN or infinite",
    "semantic/k_larger_than_d_sae": "k is 100; it must be a whole number from 1 to d_sae, 16",
    "semantic/missing_W_dec": "W_dec missing; a SAELens standard SAE needs it. Found: W_enc, b_dec, b_enc",
    "torch/k_negative.pt": "No known format. k_negative.pt has W_dec, W_enc, b_dec, b_enc, k",
    "torch/list.pt": "holds a list; expected a state dict",
    "torch/meta_tensor.pt": "W_enc is not a plain dense tensor",
    "torch/not_a_dict.pt": "holds a Tensor; expected a state dict",
    "torch/sparse_tensor.pt": "encoder.weight is not a plain dense tensor",
    "torch/stride0_expand.pt": "claims 268,435,456 numbers but stores fewer",
    "torch/stride_oob.pt": "not a readable torch file",
    "torch/whole_module.pt": "asks for the Python object torch.nn.modules.linear.Linear",
}
ONLY_LOADING = {"semantic/inf_bias"}
"""Seen in the numbers themselves."""
EXECUTED = Path(tempfile.gettempdir()) / "SAE_FIXTURE_PICKLE_EXECUTED"
ESCAPED = Path(tempfile.gettempdir()) / "SAE_FIXTURE_ESCAPED"
"""Made by the hostile files, if any of them gets what it wants."""
HARMLESS = {
    "cfg/dtype_attr": "the dtype of cfg.json is not read",
    "cfg/dtype_unknown": "the dtype of cfg.json is not read",
    "cfg/metadata_null": "metadata is optional",
    "cfg/version_garbage": "the version is not read",
    "semantic/zero_dec": "a decoder of zeros is useless and computes",
}


@pytest.mark.parametrize("read", [load, detect])
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_gives_a_sentence(name: str, read: Callable[[Path], Any]) -> None:
    if read is detect and name in ONLY_LOADING:
        return
    with pytest.raises(CheckpointError) as refused:
        read(BAD / name)
    assert REFUSED[name] in str(refused.value)
    assert str(refused.value).endswith(".") and str(refused.value).isprintable()
    assert not EXECUTED.exists() and not ESCAPED.exists()


def test_what_is_small_and_grows_huge_is_refused_before_it_has_grown(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2500000,), }"
        archive.writestr("W_enc.npy", header.ljust(127) + b"\n" + bytes(10_000_000))
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".")
    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    (tmp_path / "c.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for i in range(1500):
            archive.writestr(f"{i}.npy", b"")
    sentences = {"a.npz": "expands more than 100 times", "b.pkl": "raw pickle", "c.safetensors": "recursion limit"}
    for name, sentence in (sentences | {"d.npz": "No known format. d.npz has 0, 1, 10"}).items():
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=sentence):
            load(tmp_path / name, format="gemma_scope" if name == "a.npz" else None)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_harmless_is_read(name: str) -> None:
    sae = load(BAD / name)
    assert bool(sae.decode(sae.encode(torch.ones(2, 8))).isfinite().all())


def test_every_bad_file_is_accounted_for() -> None:
    folders = {path.parent.relative_to(BAD).as_posix() for path in BAD.glob("*/*/cfg.json")}
    files = {path.relative_to(BAD).as_posix() for path in BAD.glob("*/*") if path.is_file()}
    turned = {"semantic/transposed", "semantic/square_ambiguous"}
    found = {name for name in folders | files if not name.startswith("good_control")}
    assert found == REFUSED.keys() | HARMLESS.keys() | turned


def openai_state(**changes: Any) -> dict[str, Any]:
    state = {
        "pre_bias": torch.zeros(4),
        "latent_bias": torch.zeros(6),
        "encoder.weight": torch.ones(6, 4),
        "decoder.weight": torch.ones(4, 6),
        "activation": "TopK",
        "activation_state_dict": {"k": 2, "postact_fn": "ReLU"},
    }
    return {name: value for name, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Identity"}, "activation is 'Identity'; known are ReLU, TopK"),
        ({"activation_state_dict": {"k": 2, "postact_fn": "Tanh"}}, "postact_fn is 'Tanh'; known are ReLU"),
        ({"activation_state_dict": {}}, "says TopK but not k"),
        ({"activation_state_dict": {"k": -5, "postact_fn": "ReLU"}}, "k is -5"),
        ({"activation_state_dict": {"k": 7, "postact_fn": "ReLU"}}, "from 1 to d_sae, 6"),
        ({"surprise": torch.zeros(2)}, "has no surprise; these weights are of another kind"),
        ({"pre_bias": torch.zeros(4, dtype=torch.int32)}, "pre_bias is torch.int32; expected"),
        ({"latent_bias": 3.0}, "latent_bias is a float"),
        ({"latent_bias": torch.zeros(())}, "b_enc is a single number"),
        ({"encoder.weight": torch.full((6, 4), torch.nan)}, "W_enc has values that are NaN"),
        ({"decoder.weight": torch.ones(4, 5)}, "W_dec is 5 × 4; expected 6 × 4"),
        ({"encoder.weight": torch.ones(1).expand(6, 4)}, "claims 24 numbers but stores fewer"),
        ({"encoder.weight": torch.ones(6, 4).to_sparse()}, "not a plain dense tensor"),
    ],
)
def test_a_bad_state_dict_gives_a_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(openai_state(**changes), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_tied_decoder_may_be_left_out(tmp_path: Path) -> None:
    torch.save(openai_state(**{"decoder.weight": None}), tmp_path / "a.pt")
    assert torch.equal(load(tmp_path).W_dec, torch.ones(6, 4))


def test_a_choice_of_checkpoints_and_a_missing_path_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an empty folder"):
        load(tmp_path)
    for name in ("step_1.pt", "step_2.pt"):
        torch.save(openai_state(), tmp_path / name)
    with pytest.raises(CheckpointError, match="There are 2 checkpoints here .step_1.pt, step_2.pt."):
        load(tmp_path)
    assert load(tmp_path / "step_2.pt").cfg.k == 2
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        load(tmp_path / "step_3.pt")


def test_a_configuration_nested_without_end_is_refused(tmp_path: Path) -> None:
    shutil.copy(BAD / "good_control/sae_weights.safetensors", tmp_path)
    (tmp_path / "cfg.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["openai/tied_relu/ae.pt", "saelens/jumprelu/sae_weights.safetensors"])
def test_a_damaged_file_is_read_or_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    """One exception type for whatever a flipped byte makes of a header, a pickle or a directory."""
    original = (FIXTURES / name).read_bytes()
    shutil.copytree((FIXTURES / name).parent, tmp_path / "sae")
    path = tmp_path / "sae" / Path(name).name
    places = np.random.default_rng(0).integers(0, 1500, 60).tolist()
    for place in [*places, *(len(original) - 1 - p for p in places[:30])]:
        damaged = bytearray(original)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load(path)
        except CheckpointError as error:
            assert str(error).endswith(".")
    path.write_bytes(original[: len(original) // 2])
    with pytest.raises(CheckpointError):
        load(path)
