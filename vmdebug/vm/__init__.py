"""Running VMs: QEMU's command line, the accelerator, run directories, QMP, snapshots and clones.

The names of this package are imported when they are first used: finding a VM does not import what starts one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmdebug.vm.clones.template import Template, template
    from vmdebug.vm.guest_status import Status
    from vmdebug.vm.launching import launch
    from vmdebug.vm.machine import Vm
    from vmdebug.vm.planning import Plan, plan
    from vmdebug.vm.registry import Survey, every, find, find_lost, names, sweep

__all__ = [
    "Plan",
    "Status",
    "Survey",
    "Template",
    "Vm",
    "every",
    "find",
    "find_lost",
    "launch",
    "names",
    "plan",
    "sweep",
    "template",
]

_HOME = {
    "launch": "launching",
    "Status": "guest_status",
    "Vm": "machine",
    "Plan": "planning",
    "plan": "planning",
    "Template": "clones.template",
    "template": "clones.template",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vmdebug.vm' has no attribute {name!r}")
    home = import_module(f"vmdebug.vm.{_HOME.get(name, 'registry')}")
    value = globals()[name] = getattr(home, name)
    return value
