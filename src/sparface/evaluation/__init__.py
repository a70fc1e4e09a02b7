"""Is the recognizer any good: verification, and (`evaluation.compare`) the report that compares runs."""

from sparface.evaluation.verification import Validator, evaluate_verification, summary

__all__ = ["Validator", "evaluate_verification", "summary"]
