"""Miniature worlds of other domains beside `chain`, and one small policy that is warmed up for all of them."""
