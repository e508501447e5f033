"""Several vLLM servers that sample for one run: which of them is asked, and what happens when one of them dies."""
