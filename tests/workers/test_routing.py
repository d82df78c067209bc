"""Who gets what: batches once per watching hub, answers to announcements, and hubs that come and go."""

from __future__ import annotations

from hub.broker.keys import stream_key
from hub.broker.mailbox import PACKET_BYTES, HubPacket, Part
from workers.routing import Routing

A, B = stream_key("org", "a"), stream_key("org", "b")
TEXT = [("text", b"x")]


def sent(routing: Routing) -> dict[str, list[HubPacket]]:
    packets: dict[str, list[HubPacket]] = {}
    for hub, packet in routing.packets("w1"):
        packets.setdefault(hub, []).append(packet)
    return packets


def test_what_nobody_watches_goes_nowhere() -> None:
    routing = Routing()
    routing.relay(A, "m", 1, TEXT)
    assert not routing.has_news and sent(routing) == {}
    assert routing.demand(A) == 0 and not routing.is_watched(A)


def test_one_packet_brings_a_hub_the_news_of_all_its_generations() -> None:
    routing = Routing()
    routing.watch(A, "h1", 10, 0.0)
    routing.watch(B, "h1", 20, 0.0)
    routing.watch(B, "h2", 30, 0.0)
    routing.relay(A, "ma", 1, TEXT)
    routing.relay(B, "mb", 7, TEXT)
    assert routing.has_news
    assert sent(routing) == {
        "h1": [HubPacket("w1", [Part(A, "ma", 1, TEXT), Part(B, "mb", 7, TEXT)])],
        "h2": [HubPacket("w1", [Part(B, "mb", 7, TEXT)])],
    }
    assert not routing.has_news and sent(routing) == {}


def test_demand_is_the_greatest_of_all_hubs_and_absolute() -> None:
    routing = Routing()
    routing.watch(A, "h1", 10, 0.0)
    routing.watch(A, "h2", 30, 0.0)
    assert routing.demand(A) == 30
    routing.watch(A, "h2", 0, 1.0)
    assert routing.demand(A) == 10 and routing.is_watched(A)


def test_a_hub_that_withdrew_its_demand_still_gets_entries_and_one_that_left_does_not() -> None:
    routing = Routing()
    routing.watch(A, "h1", 0, 0.0)
    routing.watch(A, "h2", 5, 0.0)
    routing.leave(A, "h2")
    routing.leave(A, "h2")
    routing.leave(B, "h2")
    routing.relay(A, "m", 1, TEXT)
    assert list(sent(routing)) == ["h1"]
    assert routing.hubs == ["h1"]


def test_an_answer_names_the_last_relayed_offset_and_everything_after_it_follows() -> None:
    routing = Routing()
    routing.watch(A, "h1", 5, 0.0)
    routing.answer(A, "m", "h1", 41)
    routing.relay(A, "m", 42, TEXT)
    assert sent(routing) == {"h1": [HubPacket("w1", [Part(A, "m", 42, []), Part(A, "m", 42, TEXT)])]}


def test_a_stream_of_somebody_else_is_disowned() -> None:
    routing = Routing()
    routing.disown(A, "h1")
    routing.disown(B, "h1")
    assert routing.has_news
    assert sent(routing) == {"h1": [HubPacket("w1", [], [A, B])]}


def test_a_hub_that_is_gone_is_forgotten_with_all_that_waits_for_it() -> None:
    routing = Routing()
    for key in (A, B):
        routing.watch(key, "h1", 5, 0.0)
    routing.watch(A, "h2", 1, 0.0)
    routing.relay(A, "m", 1, TEXT)
    routing.disown(B, "h1")
    assert sorted(routing.drop_hub("h1")) == [A, B]
    assert routing.drop_hub("h1") == []
    assert list(sent(routing)) == ["h2"]
    assert routing.demand(A) == 1 and not routing.is_watched(B)


def test_a_generation_that_left_this_worker_holds_no_hub() -> None:
    routing = Routing()
    routing.watch(A, "h1", 5, 0.0)
    routing.forget(A)
    routing.forget(B)
    assert routing.hubs == [] and not routing.watches(A, "h1")


def test_packets_are_cut_at_their_size() -> None:
    routing = Routing()
    routing.watch(A, "h1", 5, 0.0)
    for first in range(1, 5):
        routing.relay(A, "m", first, [("text", b"x" * (PACKET_BYTES // 2 - 100))])
    assert [len(packet.parts) for packet in sent(routing)["h1"]] == [2, 2]


def test_reconciling_adds_what_is_registered_and_keeps_the_newer_demand() -> None:
    routing = Routing()
    routing.watch(A, "h1", 500, 1.0)
    assert routing.reconcile(A, {"h1": 16, "h2": 32}, asked_at=5.0) == ["h2"]
    routing.watch(A, "h2", 1, 6.0)
    assert routing.demand(A) == 500
    assert routing.reconcile(B, {"h3": 9}, asked_at=5.0) == ["h3"]
    assert routing.demand(B) == 9


def test_reconciling_drops_a_hub_that_left_but_not_one_heard_of_since_the_question() -> None:
    routing = Routing()
    routing.watch(A, "left", 5, 1.0)
    routing.watch(A, "came", 5, 3.0)
    assert routing.reconcile(A, {}, asked_at=2.0) == []
    assert not routing.watches(A, "left") and routing.watches(A, "came")
