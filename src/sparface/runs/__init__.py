"""A run on disk: its folder, checkpoints, metrics, MLflow state, and trained networks."""
