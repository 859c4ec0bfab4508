"""Recordings of guests as files: what QEMU has logged, what it was started with, and what the guest printed.

A recording is a directory. It knows neither GDB nor where guests come from.
"""
