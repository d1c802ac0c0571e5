"""The gateway: from an HTTP request to an answer and a record of it.

The flow, one file a stage (see docs/architecture.md):

    api (admit, decode) -> core, admission (route, queue) -> batching, runs, lanes (infer)
        -> delivery, api.encode (encode) -> append, replies -> audit.recorder (drain) -> audit.forwarder (forward)

control/ owns the routes and is the only writer of control state; supervisor starts and watches
every process.
"""

__version__ = "0.1.0"
