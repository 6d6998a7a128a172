"""Training of weights under masks: dense nets, lottery tickets, sparse nets. Knows nothing of files."""
