"""What lies in deploy/: the trial as a whole, and the AWS side."""
