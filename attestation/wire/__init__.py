"""Strict parsers of what comes from outside: TPM structures, event logs, certificates. Bytes in, frozen values out."""
