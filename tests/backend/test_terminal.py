"""What the shell shows of a run, and cancels and resumes: lines in place, plain lines, Ctrl-C."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper

from browser.management import progress
from browser.queries import runs
from sae_backend.models import Run, Sae, SaeImport
from tests.backend import messages
from tests.browser import run_rows, sae_rows
from tests.browser.run_rows import CONTEXTS

pytestmark = pytest.mark.django_db(transaction=True)


def imported(run: Run) -> SaeImport:
    row = {"name": run.sae.name, "source": "x", "lm": run.sae.lm, "sae": run.sae, "run": run}
    return SaeImport.objects.create(state=SaeImport.State.DONE, **row)


def line(run: Run) -> str:
    """What is said of a run now."""
    run.refresh_from_db()
    found = {p.run.pk: p for p in runs.unfinished()}
    return progress.Line(imported(run), found.get(run.pk)).text


def test_a_run_that_computes_shows_stage_share_speed_and_time_left() -> None:
    run_rows.published()  # 0.1 seconds a latent, 6 to publish
    run = run_rows.computing(sae_rows.new_sae("b", slug="b"), begun=100)
    run_rows.shard_done(run, CONTEXTS, 0, begun=100, done=0)
    assert re.fullmatch(r"contexts {3}50 % {2}0\.32 tokens/s {2}about 2 min left", line(run))


def test_without_an_earlier_run_only_the_stage_has_an_end() -> None:
    run = run_rows.computing(begun=100)
    run_rows.shard_done(run, CONTEXTS, 0, begun=100, done=0)
    assert line(run).endswith("0.32 tokens/s  about 2 min left in this stage")


def test_runs_that_wait_lie_still_or_are_over_say_so() -> None:
    first, second = run_rows.computing(), sae_rows.new_run(sae_rows.new_sae("b", slug="b"))
    third = sae_rows.new_run(sae_rows.new_sae("c", slug="c"))
    assert (line(second), line(third)) == ("in the queue, next", "in the queue, 2nd")
    Run.objects.filter(pk=first.pk).update(heartbeat_at=run_rows.ago(7200))
    assert line(first).startswith("stalled: no worker has touched it for  2 h 00")
    Run.objects.filter(pk=first.pk).update(state=Run.State.CANCELLED)
    assert line(first) == "cancelled"
    done = sae_rows.publish(sae_rows.new_sae("d", slug="d")).run
    assert line(done) == f"ready at /s/{done.sae.public_id}"


def test_an_import_that_nobody_begins_says_what_to_do() -> None:
    row = SaeImport.objects.create(name="new", source="x", lm=sae_rows.language_model())
    assert progress.Line(row, None).text == "waits for a worker"
    row.created_at = run_rows.ago(90)
    assert progress.Line(row, None).text == "waits for a worker  for 1:30 now; if none runs, start one: make worker"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(printed: str) -> list[str]:
    """The lines a terminal shows: up, to the start of the line, and clear are all it is told."""
    shown, at = [""] * printed.count("\n"), 0
    for up, text in re.findall(r"(?:\033\[(\d+)A)?\r\033\[K([^\n]*)\n", printed):
        at -= int(up or 0)
        shown[at], at = text, at + 1
    return [text for text in shown if text]


def test_a_terminal_shows_one_line_for_each_run_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    first, second = (run_rows.computing(sae_rows.new_sae(name, slug=name)) for name in ("one", "two"))
    for run in (first, second):
        Run.objects.filter(pk=run.pk).update(state=Run.State.FAILED, error="the disk is full " * 9)
    out = Terminal()
    show = progress.InPlace(OutputWrapper(out))
    rows = [imported(run) for run in (first, second)]
    for stage in ("running", "queued"):
        for row in rows:
            row.state = stage
        show([progress.Line(row, None) for row in rows])
    assert [text.split(maxsplit=1) for text in screen(out.getvalue())] == [
        ["one", "waits for a worker"], ["two", "waits for a worker"]
    ]  # fmt: skip
    rows[0].name = "long " * 30
    show([progress.Line(row, None) for row in rows])
    assert max(map(len, screen(out.getvalue()))) < 60
    failed = progress.watch([row.pk for row in rows], OutputWrapper(out))
    assert len(failed) == 2 and "the disk is full" not in out.getvalue()  # said once, by the command's end


def test_a_pipe_gets_a_line_for_each_new_stage_and_few_others() -> None:
    run = run_rows.computing()
    row, out = imported(run), io.StringIO()
    show = progress.Lines(OutputWrapper(out))
    for _ in range(3):
        run_rows.shard_held(run, CONTEXTS, 0, begun=10, progress=Run.objects.count())
        show([progress.Line(row, runs.unfinished()[0])])
    assert out.getvalue().count("\n") == 1
    Run.objects.filter(pk=run.pk).update(state=Run.State.LOADING, computed_at=run_rows.ago(0))
    show([progress.Line(row, runs.unfinished()[0])])
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["contexts", "latents"]


def test_ctrl_c_leaves_the_run_going_and_says_how_to_cancel_it(site_environment: dict[str, str]) -> None:
    """The import waits in the queue of a real command, for no worker runs."""
    sae_rows.language_model()
    words = [sys.executable, "manage.py", "import_sae", "/nowhere/sae.pt", "--model", "gpt2-small"]
    command = subprocess.Popen(
        words, cwd=settings.BASE_DIR, env=site_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert command.stdout is not None and "waits for a worker" in command.stdout.readline()
    command.send_signal(signal.SIGINT)
    printed, errors = command.communicate(timeout=60)
    assert command.returncode == 130 and "Traceback" not in errors
    assert "The workers go on with sae: /jobs shows it, and cancel_run" in printed
    assert SaeImport.objects.get().state == SaeImport.State.QUEUED
    messages.forget()


def said(*words: Any) -> str:
    out = io.StringIO()
    call_command(*map(str, words), stdout=out)
    return out.getvalue()


def name(sae: Sae, how: str) -> str:
    return {"name": sae.name, "slug": sae.slug, "id": sae.public_id, "part": "rare"}[how]


@pytest.mark.parametrize("how", ["name", "slug", "id", "part", "job"])
def test_a_run_is_cancelled_and_resumed_by_its_number_or_its_sae(how: str) -> None:
    messages.forget()
    run = run_rows.computing(sae_rows.new_sae("A rare name", slug="a-rare-name"))
    word, job = str(run.pk) if how == "job" else name(run.sae, how), f"job {run.pk}, A rare name r1,"
    assert said("cancel_run", word) == f"{job} is cancelled; resume_run {run.pk} goes on with it\n"
    assert Run.objects.get(pk=run.pk).state == Run.State.CANCELLED
    assert said("resume_run", word) == f"{job} goes on; /jobs/{run.pk} shows it\n"
    assert Run.objects.get(pk=run.pk).state == Run.State.COMPUTING
    messages.forget()


def test_of_several_runs_the_one_that_can_be_is_taken() -> None:
    sae = sae_rows.new_sae()
    older, newer = run_rows.computing(sae), run_rows.computing(sae)
    said("cancel_run", newer.pk)
    assert said("cancel_run", sae.slug).startswith(f"job {older.pk},")


@pytest.mark.parametrize("command", ["cancel_run", "resume_run"])
def test_what_cannot_be_done_is_a_sentence(command: str) -> None:
    done = sae_rows.publish().run
    with pytest.raises(CommandError, match=f"job {done.pk}, topk8-300 r1, is live: there is nothing to "):
        said(command, done.pk)
    with pytest.raises(CommandError, match="Nothing here is called “nobody”"):
        said(command, "nobody")
    sae_rows.new_sae("topk8-300 copy", slug="copy")
    with pytest.raises(CommandError, match="topk8-300 copy has no run|copy has no run"):
        said(command, "copy")
    with pytest.raises(CommandError, match="several SAEs. Choose one: topk8-300, topk8-300 copy"):
        said(command, "topk8")


