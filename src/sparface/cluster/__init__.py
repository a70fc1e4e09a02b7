"""Jobs on a cluster: submit them, keep them going, list them. Knows nothing of tensors."""

from sparface.cluster.jobs import list_jobs, progress_of
from sparface.cluster.submit import Command, Resources, Submission, describe, repeated, submit

__all__ = ["Command", "Resources", "Submission", "describe", "list_jobs", "progress_of", "repeated", "submit"]
