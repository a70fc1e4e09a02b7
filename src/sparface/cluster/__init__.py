"""Submit jobs to a cluster, restart them as needed, and list them. Independent of torch."""

from sparface.cluster.jobs import list_jobs, progress_of
from sparface.cluster.submit import Command, Resources, Submission, describe, repeated, submit

__all__ = ["Command", "Resources", "Submission", "describe", "list_jobs", "progress_of", "repeated", "submit"]
