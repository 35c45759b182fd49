"""Encrypted VMs on this host: bundle, disks, virtual TPM, QEMU."""
