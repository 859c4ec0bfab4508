"""Defines all commands; `vmdebug.gdb` calls it."""

from __future__ import annotations

import gdb
import vmd_bare_modules
import vmd_batch
import vmd_bt_all
import vmd_connect
import vmd_dmesg
import vmd_exceptions
import vmd_finish
import vmd_frames
import vmd_kvm
import vmd_leaving
import vmd_locks
import vmd_modules
import vmd_next
import vmd_past
import vmd_positions
import vmd_reconnect
import vmd_reverse_commands
import vmd_scripts
import vmd_share
import vmd_slide
import vmd_source
import vmd_status
import vmd_task
import vmd_until
import vmd_user
import vmd_user_frames
import vmd_wait


class Vmd(gdb.Command):
    """List the commands for debugging a Linux kernel in QEMU: vmd.

    Their names begin with `vmd-`. `help COMMAND` describes one of them.
    """

    def __init__(self) -> None:
        super().__init__("vmd", gdb.COMMAND_USER)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """List the commands."""
        for command in COMMANDS:
            print(f"{command.NAME:<15} {(command.__doc__ or '').splitlines()[0]}")


COMMANDS = (
    vmd_until.Until,
    vmd_finish.Finish,
    vmd_next.Next,
    vmd_slide.Slide,
    vmd_status.Status,
    vmd_bt_all.BtAll,
    vmd_dmesg.Dmesg,
    vmd_task.Task,
    vmd_wait.Wait,
    vmd_locks.Locks,
    vmd_user.User,
    vmd_modules.Modules,
    vmd_positions.When,
    vmd_positions.Goto,
    vmd_positions.Bookmark,
    vmd_past.LastWrite,
    vmd_past.AllWrites,
    vmd_past.LastCall,
    vmd_past.FirstCall,
    vmd_past.Diff,
    vmd_connect.Connect,
    vmd_reconnect.Reconnect,
    vmd_scripts.Scripts,
    vmd_source.Source,
    vmd_share.Share,
    vmd_batch.Run,
    vmd_batch.Exit,
)


def load() -> None:
    """Define every command. Doing so again changes nothing."""
    Vmd()
    for command in COMMANDS:
        command()
    vmd_reverse_commands.define()
    vmd_bare_modules.register()
    vmd_exceptions.register()
    vmd_frames.register()
    vmd_user.register()
    vmd_user_frames.register()
    vmd_task.register()
    vmd_modules.register()
    vmd_kvm.register()
    vmd_leaving.watch()
