"""Key providers: where the keys of encrypted VMs come from, how they are wrapped, sealed and released."""
