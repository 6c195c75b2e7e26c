"""The Trio shell of Slime Router: listeners, relay, upstream connections, command line."""
