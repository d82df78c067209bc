"""`headrace record` and `replay`: what was written is what is read, and damage is named."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import msgpack
import pytest

import headrace
from hub.cli import recording
from hub.cli.recording import Corrupt, Recorded, Writer, read
from tests.cli.command import environment, run


async def finished(url: str, model: str) -> tuple[str, headrace.Done]:
    """The stream of an answer that is over."""
    async with headrace.connect(url) as client:
        generation = client.generate("hello", model=model)
        done = await generation.done()
        assert generation.stream is not None
        return generation.stream, done


async def test_a_recording_plays_the_answer_and_proves_it(hub_url: str, tmp_path: Path) -> None:
    stream, done = await finished(hub_url, "scripted/tokens=40,rate=0,reasoning=3,tools=1")
    recorded = run("record", stream, environ=environment(HEADRACE_URL=hub_url), cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    file = tmp_path / f"{stream}.msgpack"
    header, *entries = list(msgpack.Unpacker(io.BytesIO(file.read_bytes())))
    assert header == {"headrace": "recording", "version": 1, "stream": stream}
    assert entries[0]["kind"] == "queued"
    assert entries[-1]["kind"] == "done"
    assert f"{entries[-1]['offset']} entries" in recorded.stderr
    assert all(entry["mark"] for entry in entries)
    text = "".join(entry["data"]["text"] for entry in entries if entry["kind"] == "text")
    assert hashlib.sha256(text.encode()).hexdigest() == done.text_sha256

    played = run("replay", str(file), "--instant")
    assert played.returncode == 0
    assert played.stdout == text + "\n"
    assert f"text verified, sha256 {done.text_sha256[:16]}" in played.stderr


async def test_an_answer_is_recorded_while_it_is_given(hub_url: str, tmp_path: Path) -> None:
    async with headrace.connect(hub_url) as client:
        generation = client.generate("hello", model="scripted/tokens=120,rate=30")
        stream = await generation.accepted()
        recorded = await asyncio.to_thread(run, "record", stream, "--url", hub_url, "--out", str(tmp_path / "live"))
        assert recorded.returncode == 0, recorded.stderr
        done = await generation.done()
    entries = list(msgpack.Unpacker(io.BytesIO((tmp_path / "live").read_bytes())))[1:]
    assert entries[-1]["data"]["text_sha256"] == done.text_sha256
    assert entries[-1]["ms"] > 200


def test_a_stream_that_is_not_there_is_named_and_leaves_no_file(hub_url: str, tmp_path: Path) -> None:
    done = run("record", "g_5Zk2mQ9xWb3TnL8r", environ=environment(HEADRACE_URL=hub_url), cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no stream g_5Zk2mQ9xWb3TnL8r" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(hub_url: str, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("kept")
    done = run("record", "g_5Zk2mQ9xWb3TnL8r", "--out", str(file), "--url", hub_url)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert file.read_text() == "kept"


def entries(text: str = "hello", digest: str | None = None) -> list[Recorded]:
    sha256 = digest or hashlib.sha256(text.encode()).hexdigest()
    return [
        Recorded(1, "a", "queued", {"model": "m"}, 0),
        Recorded(4, "b", "text", {"text": text}, 300, first=2),
        Recorded(5, "b", "done", {"status": "completed", "text_sha256": sha256}, 600),
    ]


def write(path: Path, items: list[Recorded]) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, "g_1")
        for item in items:
            writer.add(item)
    return path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    with write(tmp_path / "r", entries()).open("rb") as file:
        header, *found = read(file)
    assert header == recording.Header("recording", 1, "g_1")
    assert found == entries()


def test_a_wrong_digest_is_told_with_status_1(tmp_path: Path) -> None:
    played = run("replay", str(write(tmp_path / "r", entries(digest="0" * 64))), "--instant")
    assert played.returncode == 1
    assert played.stdout == "hello\n"
    assert "the text differs" in played.stderr


def test_a_recording_without_an_end_is_played_and_not_judged(tmp_path: Path) -> None:
    played = run("replay", str(write(tmp_path / "r", entries()[:2])), "--instant")
    assert played.returncode == 0
    assert "ends before `done`, at entry 4" in played.stderr


def test_a_reset_voids_what_was_before_it(tmp_path: Path) -> None:
    before = [Recorded(1, "a", "text", {"text": "void"}, 0), Recorded(2, "b", "reset", {"reason": "worker_lost"}, 0)]
    after = [Recorded(entry.offset + 2, "b", entry.kind, entry.data, 0) for entry in (entries()[0], entries()[2])]
    text = Recorded(4, "b", "text", {"text": "hello"}, 0)
    done = Recorded(5, "b", "done", entries()[2].data, 0)
    played = run("replay", str(write(tmp_path / "r", [*before, after[0], text, done])), "--instant")
    assert played.returncode == 0, played.stderr
    assert "text verified" in played.stderr


def test_speed_divides_the_time(tmp_path: Path) -> None:
    import time

    from hub.cli.replay import play

    file = write(tmp_path / "r", entries())
    began = time.monotonic()
    play(file, 1.0)
    assert time.monotonic() - began >= 0.6
    began = time.monotonic()
    play(file, 100.0)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_file_that_was_cut_off_is_named_as_that(cut: int, tmp_path: Path) -> None:
    file = write(tmp_path / "r", entries())
    file.write_bytes(file.read_bytes()[:-cut])
    played = run("replay", str(file), "--instant")
    assert played.returncode == 1
    assert "was cut off" in played.stderr
    assert played.stderr.count("\n") == 1


def header() -> bytes:
    data: bytes = msgpack.packb({"headrace": "recording", "version": 1, "stream": "g_1"})
    return data


DAMAGED = {
    "empty": (b"", "empty"),
    "something else": (b'{"type": "hello"}', "no recording"),
    "a newer version": (msgpack.packb({"headrace": "recording", "version": 2, "stream": "g"}), "version 2"),
    "no MessagePack": (header() + b"\xc1\xc1", "cannot be read from byte"),
    "an extension": (header() + msgpack.packb(msgpack.ExtType(5, b"x")), "extension"),
    "a missing field": (header() + msgpack.packb({"offset": 1}), "missing required field"),
    "a huge object": (header() + b"\xdb\x7f\xff\xff\xff" + b"x" * (2 * recording.OBJECT_BYTES), "1 MiB"),
    "very deep": (header() + b"\x91" * 100_000, "cannot be read"),
    "a hole": (
        header() + msgpack.packb({"offset": 3, "mark": "a", "kind": "text", "data": {"text": "x"}, "ms": 0}),
        "entry 3 follows entry 0",
    ),
    "a negative offset": (
        header() + msgpack.packb({"offset": -3, "mark": "a", "kind": "text", "data": {}, "ms": 0}),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_its_fault(name: str, tmp_path: Path) -> None:
    data, fault = DAMAGED[name]
    file = tmp_path / "r"
    file.write_bytes(data)
    with file.open("rb") as opened, pytest.raises(Corrupt, match=fault):
        list(read(opened))


def test_a_long_recording_is_read_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    big = [Recorded(offset, "a", "text", {"text": "x" * 16_000}, 0) for offset in range(1, 2001)]
    file = write(tmp_path / "r", big)
    del big
    tracemalloc.start()
    with file.open("rb") as opened:
        assert sum(1 for _ in read(opened)) == 2001
    assert tracemalloc.get_traced_memory()[1] < 6 * recording.OBJECT_BYTES
    tracemalloc.stop()
