"""The networks: the generator (SAE), the recognizer, and their parts, without training code."""
