"""What a client may send, how long it may take, and what is refused before anything reads it."""
