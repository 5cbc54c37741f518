"""What this server is made of: found without running a program, bounded in size, and told when it changes."""
