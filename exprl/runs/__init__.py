"""The folder of a run: what lies in it, who may write there, and reading checkpoints back."""
