"""Studies: arms of stages, over seeds, compared."""
