"""Jobs on a cluster: submit them, keep them going, list them. Knows nothing of tensors."""

from sparface.cluster.jobs import list_jobs
from sparface.cluster.submit import Resources, Submission, describe, submit

__all__ = ["Resources", "Submission", "describe", "list_jobs", "submit"]
