"""Text to token ids and back: tokenizers, chat templates, detokenizer, stop texts."""
