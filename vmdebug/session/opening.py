"""Opens sessions: on a guest that it starts, on a recording that it replays, on a VM that runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

from vmdebug import config, replaying, sources, vm
from vmdebug.attaching import ATTACH_SECONDS
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.guest_options import StartOptions, changed
from vmdebug.progress import Report, silent
from vmdebug.replaying import REPLAY_SECONDS
from vmdebug.session.debug_session import DebugSession


def start(
    guest: str | os.PathLike[str] | None = None,
    *,
    report: Report = silent,
    timeout: float = LAUNCH_SECONDS,
    build_timeout: float = BUILD_SECONDS,
    **options: Unpack[StartOptions],
) -> DebugSession:
    """Start a guest; it ends with the session, even if this process is killed.

    Args:
        guest: GUEST as on the command line; None: the default of vmdebug.toml, else the builtin guest.
        report: Called with each long step.
        timeout: Seconds to wait for QEMU's answer.
        build_timeout: Seconds for finding and building the guest; nix or make may build its kernel.
        **options: The options of `vmdebug start`, see `StartOptions`; they override those of vmdebug.toml.

    Returns:
        The session, a context manager.

    Raises:
        UsageError: the guest or an option is wrong.
        HostError: the machine lacks something.
        MismatchError: kernel and symbols are from different builds.
        BuildError: nix or make failed.
        LaunchError: QEMU did not start.
        DeadlineError: a step took too long.
    """
    words = None if guest is None else os.fspath(guest)
    wanted = changed(config.lookup(words, Path.cwd()), options)
    spec = sources.resolve(wanted, report=report, deadline=Deadline.after(build_timeout))
    machine = vm.launch(spec, bound=True, report=report, timeout=timeout, exact_name=wanted.name is not None)
    return DebugSession(machine, owned=True, force=wanted.force)


def replay(
    recording: str | os.PathLike[str] | None = None,
    *,
    to: int | str = "failure",
    name: str | None = None,
    report: Report = silent,
    timeout: float = REPLAY_SECONDS,
) -> DebugSession:
    """Replay a recording up to a position, where the guest is stopped; the replay ends with the session.

    Args:
        recording: Its path, or its name; None: the newest one.
        to: An instruction count; or `start`, `end`, `failure` (the first kernel trouble on the console, else
            the end), a time such as `2.5s`, or a text on the console.
        name: The name of the VM; None: that of the guest, and `-replay`.
        report: Called with each long step.
        timeout: Seconds to get there.

    Raises:
        UsageError: there is no such recording or position.
        StateError: it is still being recorded.
        HostError: the version of QEMU that recorded it is not here, or a file of the guest.
        LaunchError: QEMU did not start.
        DeadlineError: it took too long.
    """
    words = None if recording is None else os.fspath(recording)
    machine = replaying.start(words, to=str(to), name=name, bound=True, report=report, timeout=timeout)
    return DebugSession(machine, owned=True)


def attach(name: str | None = None, *, force: bool = False, timeout: float = ATTACH_SECONDS) -> DebugSession:
    """Return a session for a VM that `vmdebug start` has left running; the VM outlives the session.

    Args:
        name: The VM's name; None: the only one that runs.
        force: Whether to continue with symbols from another build than the running kernel.
        timeout: Seconds to find the VM while another vmdebug removes one; and the session's `attach_timeout`.

    Raises:
        UsageError: there is no such VM; or there are several, and no name is given.
        StateError: the VM has not started yet; or its run directory was removed.
        DeadlineError: another vmdebug kept the runtime directory locked.
    """
    return DebugSession(vm.find(name, timeout=timeout), owned=False, force=force, attach_timeout=timeout)
