"""How good a policy is: unbiased pass@k, progress along the reference, and intervals over problems."""
