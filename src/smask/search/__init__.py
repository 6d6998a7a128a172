"""Search of supermasks: scores, densities, methods, the loop and its data. A reader never imports it."""
