"""The note about a runtime directory that is removed at logout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmdebug.vm import logout

OF_LOGIND = Path(f"/run/user/{os.geteuid()}/vmdebug/v")


@pytest.fixture(autouse=True)
def linger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the users that linger."""
    monkeypatch.setattr(logout, "LINGER", tmp_path)
    return tmp_path


def test_a_directory_of_logind_is_removed_at_logout() -> None:
    said = logout.warning(OF_LOGIND)
    assert f"systemd removes /run/user/{os.geteuid()} " in said
    assert "loginctl enable-linger" in said


def test_it_stays_for_a_user_that_lingers(linger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logout, "_user", lambda: "anna")
    (linger / "bert").touch()
    assert logout.warning(OF_LOGIND)
    (linger / "anna").touch()
    assert not logout.warning(OF_LOGIND)


@pytest.mark.parametrize("place", ["/tmp/vmdebug-0/v", "/run/user/1/vmdebug/v", "/home/u/run/vmdebug/v"])
def test_other_directories_stay(place: str) -> None:
    assert not logout.warning(Path(place)) or os.geteuid() == 1


def test_a_user_without_an_entry_in_the_password_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert logout.warning(OF_LOGIND)
