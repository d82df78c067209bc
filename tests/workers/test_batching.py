"""What piles up while an append is in flight: order, sizes, and valid UTF-8 whatever a provider cuts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.protocol.entries import TEXT_BYTES, Entry, delta_text
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


def test_what_is_pending_can_be_looked_at_and_stays() -> None:
    outbox = Outbox()
    outbox.text("text", "kept")
    outbox.entry("usage", b"u")
    assert outbox.peek() == taken(outbox) == [("text", b"kept"), ("usage", b"u")]


def test_trim_drops_the_newest() -> None:
    outbox = Outbox()
    outbox.text("text", "kept")
    outbox.text("tool_input", "dropped", call="t1")
    outbox.trim(outbox.size - 1)
    assert taken(outbox) == [("text", b"kept")]
    assert outbox.size == 0


def test_trim_to_less_than_nothing_drops_everything() -> None:
    outbox = Outbox()
    outbox.text("text", "said")
    outbox.trim(-1)
    assert taken(outbox) == [] and outbox.size == 0


#: Any text that a provider's JSON may decode to, and more often than chance has it halves of pairs.
PIECES = st.text(st.characters(codec=None)) | st.text("\ud83c\udf1ea")
SAID = st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), PIECES), max_size=30)


@settings(deadline=None)
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


class AnyOutbox(RuleBasedStateMachine):
    """Pieces, whole entries, halves of characters, partial takes and trims: what comes out is what went in, in order,
    in entries of bounded size, and the weight is always that of what is left."""

    @initialize()
    def begin(self) -> None:
        self.outbox = Outbox()
        self.said: list[tuple[str, str, str]] = []  # kind, call, text
        self.taken: list[Entry] = []

    @rule(kind=st.sampled_from(["text", "reasoning", "tool_input"]), call=st.sampled_from("ab"), text=PIECES)
    def text(self, kind: str, call: str, text: str) -> None:
        call = call if kind == "tool_input" else ""
        self.outbox.text(kind, text, call)
        if not text:
            return
        if self.said and self.said[-1][:2] == (kind, call):
            text = self.said.pop()[2] + text
        self.said.append((kind, call, text))

    @rule(text=st.sampled_from(["x" * TEXT_BYTES, "€" * 700, "ab" * 1500 + "\ud83c"]))
    def much(self, text: str) -> None:
        self.text("text", "", text)

    @rule(data=st.binary(max_size=9))
    def entry(self, data: bytes) -> None:
        self.outbox.entry("citation", data)
        self.said.append(("citation", "", data.hex()))

    @rule(limit=st.integers(1, 6000))
    def take(self, limit: int) -> None:
        before = len(self.outbox)
        entries = self.outbox.take(limit)
        assert bool(entries) == bool(before) and len(self.outbox) == before - len(entries)
        weights = [ENTRY_WEIGHT + len(data) for kind, data in entries if kind != "tool_input"]
        assert len(entries) == 1 or sum(weights) <= limit
        self.taken += entries

    @invariant()
    def what_is_pending_has_its_weight(self) -> None:
        if hasattr(self, "outbox"):
            assert (self.outbox.size == 0) == (len(self.outbox) == 0)
            assert self.outbox.size >= ENTRY_WEIGHT * len(self.outbox)

    def teardown(self) -> None:
        if not hasattr(self, "outbox"):
            return
        self.outbox.flush()
        while len(self.outbox):
            self.take(6000)
        assert self.outbox.size == 0
        heard: list[tuple[str, str, str]] = []
        for kind, data in self.taken:
            assert kind == "citation" or 0 < len(data) <= TEXT_BYTES + 64
            if kind == "citation":
                heard.append((kind, "", data.hex()))
                continue
            call, text = delta_text(kind, data)
            call = call or ""
            if heard and heard[-1][:2] == (kind, call):
                text = heard.pop()[2] + text
            heard.append((kind, call, text))
        assert heard == [(k, c, t if k == "citation" else mended(t)) for k, c, t in self.said]


AnyOutbox.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_any_outbox = AnyOutbox.TestCase
