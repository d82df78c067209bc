"""Who may wait at the gate, and for which address a connection counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.gate import Gate, address_of, networks


class Guest:
    def __init__(self, address: str | None) -> None:
        self.address = address
        self.was_turned_away = False

    def turn_away(self) -> None:
        assert not self.was_turned_away
        self.was_turned_away = True


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "leave again"]), st.sampled_from(["a", "b", None]))))
def test_no_limit_is_ever_exceeded_and_only_the_oldest_go(steps: list[tuple[str, str | None]]) -> None:
    gate = Gate(4, 2)
    inside: list[Guest] = []
    left: list[Guest] = []
    for step, address in steps:
        if step == "enter":
            guest = Guest(address)
            gate.enter(guest, address)
            inside.append(guest)
            neighbours = [one for one in inside if one.address == address]
            expected = neighbours[:1] if address is not None and len(neighbours) > 2 else []
            expected = expected or (inside[:1] if len(inside) > 4 else [])
        elif step == "leave" and inside:
            left.append(inside.pop(len(steps) % len(inside)))
            gate.leave(left[-1])
            expected = []
        else:
            for guest in left:
                gate.leave(guest)
            expected = []
        assert [guest for guest in inside if guest.was_turned_away] == expected
        inside = [guest for guest in inside if not guest.was_turned_away]
        assert len(gate) == len(inside) <= 4
    for guest in inside:
        gate.leave(guest)
    assert len(gate) == 0 and gate._by_address == {}


PROXIES = networks("10.0.0.0/8, 192.168.1.1,fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.9.9.9 , 192.168.1.1"], "203.0.113.9"),
        ("10.0.0.1", [], None),
        ("10.0.0.1", ["10.0.0.2"], None),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["203.0.113.9, nonsense"], None),
        (None, ["203.0.113.9"], None),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", [], "2001:db8:1:2::/64"),
        ("fd00::1", ["2001:db8:1:3::7"], "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
    ],
)
def test_only_what_trusted_proxies_wrote_is_believed(
    peer: str | None, forwarded: list[str], address: str | None
) -> None:
    assert address_of(peer, forwarded, PROXIES) == address


def test_without_trusted_proxies_every_claim_is_ignored() -> None:
    assert address_of("127.0.0.1", ["203.0.113.9"], networks("")) == "127.0.0.1"


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example", "10.0.0.1;10.0.0.2"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.split("/")[0].split(";")[0]):
        networks(text)
