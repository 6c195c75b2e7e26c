"""What an operator sees of a running router: metrics, logs and traces.

Everything is read, nothing is decided here: metrics from the state and from the books of those who
do things, logs and spans from committed transitions and from requests.
"""
