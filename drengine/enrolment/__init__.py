"""How a host gets its certificate, keeps it fresh, and learns who was revoked; and the service that it asks.

`place`, `messages`, `client` and `keeper` are what every party has; `http`, `service`, `seen` and `mosquitto` are the
authority's and the broker's.
"""
