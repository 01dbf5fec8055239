"""Where trials run: the command, executors, the worker, the screen."""
