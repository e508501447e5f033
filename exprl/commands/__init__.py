"""What the commands do, once `exprl.cli` has read their arguments."""
