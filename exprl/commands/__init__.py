"""What the commands do, once `exprl.cli` has read and checked their arguments."""
