"""What piles up while an append is in flight: order, sizes, and valid UTF-8 whatever a provider cuts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.entries import TEXT_BYTES, delta_text
from workers.batching import ENTRY_WEIGHT, Outbox

EVERYTHING = 1 << 30


def taken(outbox: Outbox, limit: int = EVERYTHING) -> list[tuple[str, bytes]]:
    return outbox.take(limit)


def test_pieces_of_one_kind_become_one_entry() -> None:
    outbox = Outbox()
    for piece in ("The ", "sky ", "is"):
        outbox.text("text", piece)
    assert len(outbox) == 1
    assert taken(outbox) == [("text", b"The sky is")]
    assert (len(outbox), outbox.size) == (0, 0)


def test_kinds_keep_their_order() -> None:
    outbox = Outbox()
    outbox.text("reasoning", "hm")
    outbox.text("text", "a")
    outbox.entry("tool_call", b"\x80")
    outbox.text("tool_input", "{", call="t1")
    outbox.text("tool_input", "}", call="t1")
    outbox.text("tool_input", "{}", call="t2")
    outbox.text("text", "b")
    entries = taken(outbox)
    assert [kind for kind, _ in entries] == [
        "reasoning", "text", "tool_call", "tool_input", "tool_input", "text",
    ]  # fmt: skip
    assert [delta_text(*entry) for entry in entries[3:5]] == [("t1", "{}"), ("t2", "{}")]


def test_an_empty_piece_is_no_entry() -> None:
    outbox = Outbox()
    outbox.text("text", "")
    assert len(outbox) == 0 and taken(outbox) == []


def test_only_the_newest_usage_in_a_row_is_kept() -> None:
    outbox = Outbox()
    outbox.entry("usage", b"old")
    outbox.entry("usage", b"newer")
    outbox.text("text", "x")
    outbox.entry("usage", b"last")
    assert outbox.size == 3 * ENTRY_WEIGHT + len(b"newerxlast")
    assert taken(outbox) == [("usage", b"newer"), ("text", b"x"), ("usage", b"last")]


def test_long_text_is_cut_at_character_borders() -> None:
    outbox = Outbox()
    outbox.text("text", "€" * 3000)
    entries = taken(outbox)
    assert all(len(data) <= TEXT_BYTES and data.decode() for _, data in entries)
    assert b"".join(data for _, data in entries).decode() == "€" * 3000


def test_what_does_not_fit_the_last_entry_opens_another() -> None:
    outbox = Outbox()
    outbox.text("text", "a" * (TEXT_BYTES - 1))
    outbox.text("text", "bc")
    assert [len(data) for _, data in taken(outbox)] == [TEXT_BYTES - 1, 2]


def test_a_pair_split_by_the_provider_is_joined() -> None:
    outbox = Outbox()
    outbox.text("text", "sun \ud83c")
    assert taken(outbox) == [("text", b"sun ")]
    outbox.text("text", "\udf1e!")
    assert taken(outbox) == [("text", "\U0001f31e!".encode())]


def test_a_half_without_a_partner_becomes_a_replacement_character_in_its_place() -> None:
    outbox = Outbox()
    outbox.text("text", "a\ud83c")
    outbox.text("reasoning", "b")
    outbox.text("text", "\udf1e")
    outbox.text("text", "c\ud83c")
    outbox.entry("citation", b"{}")
    outbox.text("text", "d\ud83c")
    outbox.flush()
    outbox.flush()
    assert [(kind, data.decode()) for kind, data in taken(outbox)] == [
        ("text", "a\ufffd"),
        ("reasoning", "b"),
        ("text", "\ufffdc\ufffd"),
        ("citation", "{}"),
        ("text", "d\ufffd"),
    ]


def test_take_leaves_what_is_above_its_limit_and_always_takes_something() -> None:
    outbox = Outbox()
    for number in range(3):
        outbox.entry("citation", bytes([number]) * 100)
    assert taken(outbox, 1) == [("citation", b"\0" * 100)]
    assert len(taken(outbox, 2 * (100 + ENTRY_WEIGHT) - 1)) == 1
    assert len(outbox) == 1 and outbox.size == 100 + ENTRY_WEIGHT


def test_take_fills_a_batch_up_to_its_limit() -> None:
    outbox = Outbox()
    for number in range(4):
        outbox.entry("citation", bytes([number]) * 100)
    assert len(taken(outbox, 3 * (100 + ENTRY_WEIGHT))) == 3
    assert len(taken(outbox)) == 1


def test_trim_drops_the_newest() -> None:
    outbox = Outbox()
    outbox.text("text", "kept")
    outbox.text("tool_input", "dropped", call="t1")
    outbox.trim(outbox.size - 1)
    assert taken(outbox) == [("text", b"kept")]
    assert outbox.size == 0


#: Any text that a provider's JSON may decode to, and more often than chance has it halves of pairs.
PIECES = st.text(st.characters(codec=None)) | st.text("\ud83c\udf1ea")
SAID = st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), PIECES), max_size=30)


@given(SAID, st.integers(1, 4000))
def test_nothing_is_lost_or_reordered_within_a_kind(pieces: list[tuple[str, str]], limit: int) -> None:
    """Both kinds read on their own are what the provider said; halves that are not in a row are replaced."""
    outbox = Outbox()
    entries: list[tuple[str, bytes]] = []
    for number, (kind, text) in enumerate(pieces):
        outbox.text(kind, text)
        if number % 3 == 0:
            entries += taken(outbox, limit)
    outbox.flush()
    while len(outbox):
        entries += taken(outbox, limit)
    assert outbox.size == 0
    runs: list[tuple[str, str]] = []
    for kind, text in pieces:
        if text and runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + text)
        elif text:
            runs.append((kind, text))
    for kind in ("text", "reasoning"):
        said = "".join(mended(text) for of, text in runs if of == kind)
        assert b"".join(data for of, data in entries if of == kind).decode() == said
    assert all(0 < len(data) <= TEXT_BYTES for _, data in entries)


def mended(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
