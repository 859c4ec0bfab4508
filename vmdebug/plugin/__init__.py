"""The parts of the pytest plugin; `vmdebug.pytest_plugin` imports them when the first test needs a guest."""

FIXTURE = "vmdebug_guest"
"""The fixture that every other one is built on."""
