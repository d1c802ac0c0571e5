"""The log: identity, frames, rings, spool, feeds and the way to Kafka.

writer (append, in each process) -> ring -> recorder (drain) -> spool -> forwarder (forward) -> topic;
feed reads either end. Imports nothing of api, core or batching.
"""
