"""How it is trained: loop, schedules, checkpoints, several processes. Knows neither Ray nor MLflow."""
