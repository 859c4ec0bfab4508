"""The types of drgn in vmdebug's own signatures; only type checkers import this."""

from __future__ import annotations

from drgn import Object, Program, StackTrace

__all__ = ["Object", "Program", "StackTrace"]
