"""Software hosts, honest and lying, and recorded boots to put into a software TPM."""
