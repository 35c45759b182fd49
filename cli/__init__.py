"""The garant command."""
