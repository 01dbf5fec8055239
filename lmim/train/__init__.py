"""How it is trained: loop, schedules, checkpoints, several processes. Knows neither Ray nor MLflow."""

import os

# DistributedDataParallel looks for unused parameters (see `Run.shared`), and warns where it finds none, which
# says nothing to users and cannot be told otherwise. PyTorch reads this when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
