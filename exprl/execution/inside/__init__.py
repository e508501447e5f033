"""What runs within a sandbox, beside the program: Python's own library alone, nothing of exprl.

Nothing in here is trusted by the outside where a candidate program runs in the same process (`launch`, `serve`): what
they send are values, compared elsewhere. `check` runs a test program in a sandbox that holds no candidate.
"""
