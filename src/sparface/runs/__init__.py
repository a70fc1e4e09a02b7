"""A run on disk: its folder, checkpoints, record, what MLflow has of it, and its trained networks."""
