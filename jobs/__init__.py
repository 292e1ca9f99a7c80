"""The stages, one module each, the driver that runs them round after round, and the command line."""
