"""Command line: one file a subcommand; the only place that prints or exits."""
