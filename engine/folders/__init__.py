"""Folders of sentence-transformers, read: what follows the transformer, and how texts are prepared for it."""
