"""What is claimed about speed and accuracy, as programs."""
