"""Who a worker is: one identity for each start, of which Redis holds all."""

from __future__ import annotations

from actors.identity import Identity


def test_two_starts_are_two_workers_whatever_they_share() -> None:
    """Host and pid are the same, as are the four digits that people see: Redis tells them apart all the same."""
    one, other = Identity.make("svc", "abcd000000000001"), Identity.make("svc", "abcd000000000002")
    assert one.worker_id == other.worker_id
    assert one.key != other.key
    assert one.key.endswith("abcd000000000001")


def test_what_redis_holds_has_no_separator_in_it() -> None:
    """A host may be called anything; colon and bar part the fields in which this stands."""
    identity = Identity(service="svc", host="a:b|c/d", pid=7, nonce="0" * 16)
    assert not set(identity.key) & set(":|/")
