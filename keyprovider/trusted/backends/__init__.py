"""What can hold primary keys; each serves the port ``PrimaryKeyBackend``."""
