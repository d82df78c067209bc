"""`headrace demo`: nothing lost, nothing doubled, in time; and its witness would notice."""

from __future__ import annotations

import re
import time

import pytest
from msgspec import UNSET

from headrace.protocol.frames import Attached, Delta, EntryFrame
from hub.cli.witness import Witness
from tests.cli.command import environment, marked, needs_proc, run, running, until

#: A Redis that the demonstration must not touch.
FOREIGN = "redis://127.0.0.1:1/0"


@needs_proc
@pytest.mark.timeout(90)
def test_it_ends_with_two_equal_texts_and_no_duplicate_or_gap() -> None:
    began = time.monotonic()
    done = run("demo", environ=environment(HEADRACE_REDIS_URL=FOREIGN, TEST_MARK="demo-whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 20
    assert marked("demo-whole") == {}
    digests = re.findall(r"\b[0-9a-f]{64}\b", done.stdout)
    assert len(digests) == 3
    assert len(set(digests)) == 1
    assert re.search(r"duplicates\s+0\s+0", done.stdout)
    assert re.search(r"gaps\s+0\s+0", done.stdout)
    assert re.search(r"reconnects\s+2\s+0", done.stdout)
    assert "hub A is killed with SIGKILL" in done.stdout
    assert "Ada is back, on hub B" in done.stdout


@needs_proc
def test_its_end_by_a_signal_leaves_no_process_behind() -> None:
    with running("demo", environ=environment(TEST_MARK="demo")) as demo:
        demo.wait_for("is cut")
        assert len(marked("demo")) >= 5  # itself, Redis, two hubs, a worker
        demo.process.kill()
        demo.finish()
        until(lambda: not marked("demo"), "its hubs, worker and Redis end with it", within_s=10)


@needs_proc
@pytest.mark.timeout(90)
def test_chaos_breaks_things_and_counts_nothing_lost() -> None:
    done = run("demo", "--chaos", "--seconds", "8", environ=environment(TEST_MARK="demo-chaos"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert marked("demo-chaos") == {}
    assert re.search(r"(killed|cut)\s+[1-9]", done.stdout)
    assert re.search(r"answers\s+[1-9]", done.stdout)
    for figure in ("lost", "doubled", "wrong texts", "never ended"):
        assert re.search(rf"^ *{figure} +0 *$", done.stdout, re.MULTILINE), figure


def delta(offset: int, first: int | None = None) -> Delta:
    return Delta(stream="g_1", first=UNSET if first is None else first, offset=offset, text="x")


def attached(offset: int, *, resumed: bool) -> Attached:
    return Attached(id=1, stream="g_1", resumed=resumed, offset=offset, mark="m", top=9, state="running", window=256)


def test_a_witness_counts_what_came_twice_and_what_never_came() -> None:
    witness = Witness()
    for frame in (delta(1), delta(4, 2), attached(4, resumed=True), delta(5), delta(5), delta(7, 4), delta(10)):
        witness.see(frame)
    assert (witness.duplicates, witness.gaps, witness.last) == (3, 2, 10)
    assert not witness.is_clean


def test_a_witness_finds_nothing_wrong_with_a_clean_resume() -> None:
    witness = Witness()
    done = EntryFrame(stream="g_1", offset=7, kind="done", data={"text_sha256": "abc"})
    for frame in (attached(0, resumed=True), delta(3, 1), attached(3, resumed=True), delta(6, 4), done):
        witness.see(frame)
    assert witness.is_clean
    assert (witness.resumes, witness.last, witness.digest) == (1, 7, "abc")


def test_a_witness_tells_a_restart_from_a_resume() -> None:
    witness = Witness()
    for frame in (delta(3, 1), attached(0, resumed=False), delta(3, 1)):
        witness.see(frame)
    assert (witness.restarts, witness.duplicates, witness.gaps) == (1, 0, 0)
    assert not witness.is_clean
