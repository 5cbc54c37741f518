"""`drengine broker`: the one that comes with drengine, and Mosquitto's files."""
