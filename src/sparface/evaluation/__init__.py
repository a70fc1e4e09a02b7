"""Evaluate a recognizer by verification on pairs of faces."""

from sparface.evaluation.verification import Validator, evaluate_verification, summary

__all__ = ["Validator", "evaluate_verification", "summary"]
