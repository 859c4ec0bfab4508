"""The running VM: its command line, accelerator, run directory, QMP, console and end."""

from vmdebug.vm.launching import launch
from vmdebug.vm.machine import Status, Vm
from vmdebug.vm.planning import Plan, plan
from vmdebug.vm.registry import Survey, every, find, names, sweep

__all__ = ["Plan", "Status", "Survey", "Vm", "every", "find", "launch", "names", "plan", "sweep"]
