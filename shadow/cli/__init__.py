"""Commands that read the log or plan a rollout; `tidegate` lists them in its one table."""
