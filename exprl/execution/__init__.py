"""Code judged by running it: tests, sandboxes, and who runs many programs at once."""

from exprl.execution.bubblewrap import Bubblewrap
from exprl.execution.sandboxes import NoSandbox, Sandbox
from exprl.execution.tests import (
    CallCase,
    CallTests,
    ProgramTests,
    StdioCase,
    StdioTests,
    Tests,
    parse_tests,
    to_json,
)
from exprl.execution.verifier import ExecutionVerifier

__all__ = [
    "Bubblewrap",
    "CallCase",
    "CallTests",
    "ExecutionVerifier",
    "NoSandbox",
    "ProgramTests",
    "Sandbox",
    "StdioCase",
    "StdioTests",
    "Tests",
    "parse_tests",
    "to_json",
]
