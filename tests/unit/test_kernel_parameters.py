import pytest

from vmdebug.arch import by_name
from vmdebug.kernel_parameters import DEBUGGER_PARAMETERS, IGNORE_LOGLEVEL, parameters


def test_ours_come_before_the_users_parameters() -> None:
    ours = parameters(by_name("x86_64"), kaslr=False, append="quiet nowatchdog=0")
    assert ours[:2] == ("console=ttyS0,115200", "nokaslr")
    assert {*DEBUGGER_PARAMETERS, "tsc=nowatchdog", "no_timer_check"} < set(ours)
    assert ours[-2:] == ("quiet", "nowatchdog=0")


@pytest.mark.parametrize(
    ("append", "loud"),
    [("", True), ("ro", True), ("quiet", False), ("loglevel=4", False), (IGNORE_LOGLEVEL, False)],
)
def test_the_console_shows_every_message_unless_the_user_chooses(append: str, loud: bool) -> None:
    ours = parameters(by_name("x86_64"), kaslr=False, append=append)
    assert (IGNORE_LOGLEVEL in ours[: len(ours) - len(append.split())]) == loud


def test_kaslr_stays_on_when_asked_for() -> None:
    assert "nokaslr" not in parameters(by_name("x86_64"), kaslr=True, append="")
