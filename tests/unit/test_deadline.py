import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError


def test_what_remains_is_at_most_what_was_given() -> None:
    assert 0 < Deadline.after(5).left("a thing") <= 5


def test_a_passed_deadline_says_what_was_waited_for_and_how_long() -> None:
    deadline = Deadline.after(0)
    assert deadline.passed
    with pytest.raises(DeadlineError, match="waited 0 s for QEMU to answer on QMP") as caught:
        deadline.left("QEMU to answer on QMP")
    assert caught.value.exit_status == 5


def test_at_most_keeps_the_sooner_of_two() -> None:
    soon, late = Deadline.after(1), Deadline.after(100)
    assert late.at_most(1).at < late.at
    assert soon.at_most(100) is soon
