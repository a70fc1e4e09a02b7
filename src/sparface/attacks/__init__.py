"""Adversarial attacks on trained recognizers and classifiers."""
