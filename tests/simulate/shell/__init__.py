"""The real shell in virtual time, over connections in memory."""
