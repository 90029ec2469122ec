"""Train the demo model and its sparse autoencoders again: `python -m demo.train`.

The steps, each of which reads what those before it wrote under --out, are corpus, tokenizer, lm, activations,
saes and evaluate. Steps already done with the same settings are skipped, so that an interrupted training goes
on at the step it was in; delete the folder to begin anew.
On one core it all takes about an hour and a half, 5 GB of memory and 3 GB of disk; `--quick` half a minute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from demo.training import activations, evaluation, formats, lm, saes, texts, tokenizer
from demo.training.settings import CTX_LEN, SaeSettings, Settings, quick
from demo.training.sparse import JumpReLU, TopK


@dataclass(frozen=True)
class Run:
    """One training: its settings and the folder of its files."""

    settings: Settings
    out: Path

    def report(self, **figures: object) -> None:
        """Print figures as a line of JSON and append them to log.jsonl."""
        line = json.dumps(figures)
        print(line, flush=True)
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def tokens(self, split: str) -> dict[str, np.ndarray]:
        """The token arrays of a split, by part of the text."""
        return {part: np.load(self.out / "tokens" / f"{part}_{split}.npy") for part in texts.PARTS}

    def lm(self) -> GPT2LMHeadModel:
        """The trained language model as it was saved."""
        return lm.load(self.out / "model")


def run_corpus(run: Run) -> None:
    """Write the text: out/text/<part>_<split>.jsonl."""
    run.report(step="corpus", files=texts.write(run.out / "text", run.settings.chars))


def run_tokenizer(run: Run) -> None:
    """Learn the tokenizer and encode the text with it: out/model/tokenizer*.json, out/tokens/*.npy."""
    learnt = tokenizer.train(tokenizer.sample(run.out / "text"))
    tokenizer.save(learnt, run.out / "model")
    (run.out / "tokens").mkdir(exist_ok=True)
    for part in texts.PARTS:
        for split in ("train", "validation"):
            ids = tokenizer.encode(learnt, texts.read(run.out / "text", part, split))
            np.save(run.out / "tokens" / f"{part}_{split}.npy", ids)
            run.report(step="tokenizer", part=part, split=split, tokens=len(ids))


def run_lm(run: Run) -> None:
    """Train the language model: out/model/config.json, model.safetensors."""
    trained = lm.train(run.settings, run.tokens("train"), lambda **figures: run.report(lm=figures))
    for part, tokens in run.tokens("validation").items():
        if len(tokens) >= CTX_LEN:
            loss = lm.validation_loss(trained, tokens, run.settings.validation_rows)
            run.report(step="lm", validation=part, loss=round(loss, 4))
    lm.save(trained, run.out / "model")


def run_activations(run: Run) -> None:
    """Collect the residual stream: out/activations.safetensors, bfloat16 [position d_in]."""
    rng = np.random.default_rng(run.settings.seed + 1)
    token_rows = activations.training_rows(run.tokens("train"), run.settings.activations, rng)
    hidden = activations.collect(run.lm(), token_rows, torch.bfloat16)
    save_file({"hidden": hidden}, run.out / "activations.safetensors")
    mean_norm = hidden[:20_000].float().norm(dim=1).mean().item()
    run.report(step="activations", positions=len(hidden), mean_norm=round(mean_norm, 2))


def run_saes(run: Run) -> None:
    """Train every autoencoder of the settings: out/saes/<name>/, out/saes/<name>_ckpts/step_*.pt."""
    hidden = load_file(run.out / "activations.safetensors")["hidden"]
    shutil.rmtree(run.out / "saes", ignore_errors=True)
    for sae_settings in run.settings.saes:
        train_sae(run, hidden, sae_settings)


def train_sae(run: Run, hidden: Tensor, sae_settings: SaeSettings) -> None:
    """Train one autoencoder on hidden [position d_in] and save it and its checkpoints."""
    folder = run.out / "saes" / sae_settings.name

    def report(**figures: float) -> None:
        run.report(sae=folder.name, **figures)

    def keep(sae: TopK | JumpReLU, step: int) -> None:
        formats.save_openai(sae, folder.with_name(f"{folder.name}_ckpts") / f"step_{step:05d}.pt")

    sae = saes.train(hidden, sae_settings, run.settings, report, keep)
    formats.save_saelens(sae, folder, sae_settings.tokens)


def run_evaluate(run: Run) -> None:
    """Measure every saved autoencoder on held-out text: out/evaluation.json."""
    model = run.lm()
    text = evaluation.held_out(model, run.tokens("validation")["lib"], run.settings.validation_rows)
    training = load_file(run.out / "activations.safetensors")["hidden"][: run.settings.density_tokens]
    measured = {}
    for path in saved_saes(run.out / "saes"):
        name = path.relative_to(run.out / "saes").as_posix()
        measured[name] = evaluation.figures(model, formats.load(path), text, training)
        run.report(evaluate=name, **measured[name])
    losses = {"loss": text.loss, "zero_loss": text.zero_loss, "mean_loss": text.mean_loss}
    (run.out / "evaluation.json").write_text(json.dumps({**losses, "saes": measured}, indent=1))


def saved_saes(folder: Path) -> list[Path]:
    """Every SAELens folder and OpenAI file under a folder of autoencoders."""
    folders = [path.parent for path in folder.glob("*/cfg.json")]
    return sorted([*folders, *folder.glob("*_ckpts/*.pt")])


@dataclass(frozen=True)
class Step:
    """A step's function and the settings that, when changed, make its files out of date."""

    run: Callable[[Run], None]
    reads: tuple[str, ...]


STEPS = {
    "corpus": Step(run_corpus, ("chars",)),
    "tokenizer": Step(run_tokenizer, ()),
    "lm": Step(run_lm, ("seed", "lm_steps", "lm_warmup", "lm_lr", "rows")),
    "activations": Step(run_activations, ("seed", "activations")),
    "saes": Step(run_saes, ("seed", "sae_batch", "sae_warmup", "dead_after", "saes")),
    "evaluate": Step(run_evaluate, ("validation_rows", "density_tokens")),
}


def run_until(run: Run, last: str) -> None:
    """Run what is not done yet up to and including `last`; a step that runs outdates all after it."""
    (run.out / "done").mkdir(parents=True, exist_ok=True)
    names = list(STEPS)
    for place, name in enumerate(names[: names.index(last) + 1]):
        done = done_file(run, name)
        if done.exists() and done.read_text() == signature(run, name):
            continue
        for later in names[place:]:
            done_file(run, later).unlink(missing_ok=True)
        start = time.perf_counter()
        STEPS[name].run(run)
        done.write_text(signature(run, name))
        run.report(step=name, seconds=round(time.perf_counter() - start, 1))


def done_file(run: Run, name: str) -> Path:
    """The file written when a step has finished; it holds the settings that the step read."""
    return run.out / "done" / f"{name}.json"


def signature(run: Run, name: str) -> str:
    """The settings that a step reads, as text."""
    settings = asdict(run.settings)
    return json.dumps({field: settings[field] for field in STEPS[name].reads}, indent=1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "step", nargs="?", choices=list(STEPS), default="evaluate", help="stop after this step"
    )
    parser.add_argument("--out", type=Path, default=Path("var/demo-train"), help="folder of all files")
    parser.add_argument("--quick", action="store_true", help="the whole chain on little text")
    parser.add_argument("--steps", type=int, help="steps of the language model")
    parser.add_argument("--tokens", type=int, help="training tokens of every autoencoder")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The full or the quick settings, with the two numbers that the command line may change."""
    settings = quick() if arguments.quick else Settings()
    if arguments.steps is not None:
        settings = replace(settings, lm_steps=arguments.steps)
    if arguments.tokens is not None:
        shorter = tuple(replace(sae, tokens=arguments.tokens) for sae in settings.saes)
        settings = replace(settings, saes=shorter)
    return settings


def main(argv: list[str] | None = None) -> None:
    """Train on one thread, where the same settings give the same files bit for bit on the same machine."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    run_until(Run(settings_of(arguments), arguments.out), arguments.step)


if __name__ == "__main__":
    main()
