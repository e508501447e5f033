"""Values seen to be what they must: what components give, and numbers that are finite."""
