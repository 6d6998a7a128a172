"""A search as a run of hours: checkpoints in a folder, a log, a size to meet. Puts searches and files together."""
