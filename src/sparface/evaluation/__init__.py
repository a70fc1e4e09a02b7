"""Is the recognizer any good: verification, and the report that compares runs."""

from sparface.evaluation.compare import compare
from sparface.evaluation.verification import Validator, evaluate_verification, summary

__all__ = ["Validator", "compare", "evaluate_verification", "summary"]
