"""Software TPM devices: process, control channel, encrypted state format, manufacture."""
