"""The core alone in a discrete-event loop."""
