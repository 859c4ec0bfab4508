"""Hunts a race: runs one workload under many schedules, each of which can be repeated by its seed."""
