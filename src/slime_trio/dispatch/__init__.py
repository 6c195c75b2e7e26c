"""A request's way to a worker: its turn, its worker or pair, what is tried again, how it ends."""
