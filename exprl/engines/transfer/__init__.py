"""The policy's weights on their way to vLLM servers: what a server is told, and who carries the bytes."""
