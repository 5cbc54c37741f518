"""Where the REST API lies: known to server and client, and free of what only the server needs."""

PREFIX = "/api/v1"
