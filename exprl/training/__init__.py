"""The policy update on Lightning: the module, its phases, callbacks and the run."""
