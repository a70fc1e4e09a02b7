"""Networks only: the generator (SAE), the recognizer, and their parts. No training code."""
