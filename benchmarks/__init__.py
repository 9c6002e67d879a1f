"""Benchmarks: commands that measure the real program."""
