"""Engines: each starts a program somewhere and sees it to its end."""
