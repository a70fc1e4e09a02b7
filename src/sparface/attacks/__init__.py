"""Attacks on a recognizer: the loss terms that a generator minimises."""
