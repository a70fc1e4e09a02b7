"""Studies: the arms of a YAML file are trained, evaluated and compared, with intervals and verdicts."""
