"""The guest's network configuration for other cards and other addresses: a module for each way of configuring it."""
