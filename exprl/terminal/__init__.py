"""What a person sees: lines, tables, progress, and streams that may close or block."""
