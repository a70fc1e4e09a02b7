"""Is the recognizer any good: verification protocols, embeddings, and the report that compares runs."""
