"""MLflow: runs, system metrics and the model registry."""
