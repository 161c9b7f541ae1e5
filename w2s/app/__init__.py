"""What is started: the command line, and notebooks without a screen."""
