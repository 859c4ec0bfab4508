"""Traces in a replay have the guest's times."""

from __future__ import annotations

from collections.abc import Mapping

from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.guest_timed import GuestTimed
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Probe, Wanted

WANTED = Wanted((Probe("vfs_read"),))


class Host:
    """A collector whose hits have the host's time."""

    name = "the plugin"
    cannot: Mapping[Feature, str] = {}

    def __init__(self) -> None:
        self.asked: list[Wanted] = []

    def start(self, wanted: Wanted) -> Batch:
        self.asked.append(wanted)
        return Batch(notes=("a note",), started=77.0)

    def take(self) -> Batch:
        return Batch(hits=(hit(0.123, 4.5, 0.9), hit(0.456, None, None)), full=True, started=77.0)

    def stop(self) -> Batch:
        return Batch(hits=(hit(0.789, 5.25, None),), ended="the guest is stopped")


def hit(time: float, guest_time: float | None, duration: float | None) -> Hit:
    return Hit(
        symbol="vfs_read",
        args={},
        time=time,
        guest_time=guest_time,
        cpu=0,
        task=None,
        duration=duration,
    )


def test_the_host_s_times_are_replaced_and_the_rest_stays() -> None:
    host = Host()
    timed = GuestTimed(host)
    assert timed.name == "the plugin"
    assert timed.start(WANTED) == Batch(notes=("a note",))
    assert host.asked == [WANTED]
    assert timed.take() == Batch(hits=(hit(4.5, 4.5, None), hit(0.0, None, None)), full=True)
    assert timed.stop() == Batch(hits=(hit(5.25, 5.25, None),), ended="the guest is stopped")
