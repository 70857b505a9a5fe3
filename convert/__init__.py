"""One module for each published checkpoint format, and the parity check."""
