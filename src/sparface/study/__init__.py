"""Studies: the arms of a YAML file, trained, evaluated and compared, with intervals and verdicts."""

from sparface.study.folder import StudyFolder
from sparface.study.local import run_here
from sparface.study.page import write_report
from sparface.study.queue import queue

__all__ = ["StudyFolder", "queue", "run_here", "write_report"]
