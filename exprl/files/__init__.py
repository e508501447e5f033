"""Paths that options name; files written whole or not at all, line by line, and by one process at a time."""
