"""KMIP: the protocol of key servers, as a client speaks it."""
