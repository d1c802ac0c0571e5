"""Shadow: everything that follows the log and may be slow, stopped or dead without a client noticing.

Reads `gateway.audit`, acts over the admin API only.
"""
