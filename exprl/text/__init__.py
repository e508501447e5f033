"""Text: question to prompt, chat templates, token ids without control tokens, and back to text."""
