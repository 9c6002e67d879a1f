"""Launchpad programs: they wire the agents' parts, and compute nothing."""
